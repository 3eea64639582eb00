"""Whose path a bind source is, on each kind of system."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from rda.docker.binds import Rules, System, Where, container_binds
from rda.docker.request import Request
from rda.docker.sources import Sources
from rda.errors import BadRequest, Refused


class SourcesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.sources = Sources(System.LINUX, Rules.of([("/srv", "remote"), ("/secret", "refuse")]))

    def binds(self, *specs: str) -> tuple:
        return container_binds({"HostConfig": {"Binds": list(specs)}})

    def test_sorted(self) -> None:
        """Each source is local or remote by the first rule that matches; what nobody expects is a warning."""
        found = self.sources.sort(self.binds("/src:/a", "/srv/data:/b", "/proc:/c", "volume:/d"))
        self.assertEqual([path for _, path in found.local], ["/src"])
        self.assertEqual(found.remote, {"/srv/data": "/srv/data", "/proc": "/proc"})
        self.assertEqual(len(found.warnings), 1)
        self.assertIn("/srv/data is the remote host's own", found.warnings[0])

    def test_refused(self) -> None:
        """A refused source is refused with the rule that says so."""
        error = self.assertRaises(Refused, self.sources.sort, self.binds("/secret/key:/a"))
        self.assertIn("by the rule '/secret'", str(error))

    def test_windows_path_on_linux(self) -> None:
        """A path that this machine cannot have is refused with where rda would have to run."""
        error = self.assertRaises(BadRequest, self.sources.sort, self.binds("C:\\src:/a"))
        self.assertIn("run rda on the machine that has the files", str(error))

    def test_windows_path_in_wsl(self) -> None:
        """In WSL it is the mounted drive's."""
        sources = Sources(System.WSL)
        found = sources.sort(self.binds("C:\\src:/a"))
        self.assertEqual([path for _, path in found.local], ["/mnt/c/src"])
        self.assertEqual(sources.mirrored(Request("n", sources=("C:\\src",))), ("/mnt/c/src",))

    def test_rule(self) -> None:
        """The rule of a local path can be asked for."""
        self.assertEqual(self.sources.rule("/srv/x").pattern, "/srv")
        self.assertIs(self.sources.rule("/home/me").where, Where.LOCAL)
