"""rda.sync.copies: remote copies that nobody uses any more."""

from __future__ import annotations

import os

from rda.status import RemoteCopy
from rda.sync.copies import Collected
from tests.fakes_remote import contents
from tests.mirror_case import MirrorCase, write


class CollectTests(MirrorCase):
    """Remote copies that nobody uses."""

    def collect(self, unused_for: float) -> Collected:
        found = self.successResultOf(self.mirrors.unused(unused_for))
        return self.successResultOf(self.mirrors.collect(found))

    def age(self, place: str) -> None:
        os.utime(os.path.join(os.path.dirname(place), "generation"), (1, 1))

    def test_collect(self) -> None:
        """Old unused copies go, with what containers made in them; used, young and other people's ones stay."""
        places = []
        for name in ("old", "young", "used", "live"):
            write(self.path(f"{name}/f"), b"1")
            places.append(self.place(self.path(name)))
            self.flush(self.path(name))
        old, _, used, live = places
        write(os.path.join(old, "made/there"), b"22")
        others = os.path.join(os.path.dirname(os.path.dirname(old)), "ffffffff-somebody-else")
        os.mkdir(others)
        self.restart()
        self.mounted.add(used[len(self.host.root) :] + "/below")
        self.successResultOf(self.mirrors.hold("c", [self.path("live")]))
        for place in (old, used, live):
            self.age(place)
        (unused,) = self.successResultOf(self.mirrors.unused(3600))
        self.assertEqual((unused.source, unused.bytes), (self.path("old"), 3))
        self.assertGreater(unused.age, 1_000_000_000)
        name = os.path.basename(os.path.dirname(old))
        self.assertEqual(self.collect(3600).removed, (name,))
        self.assertEqual([os.path.exists(place) for place in places], [False, True, True, True])
        self.assertTrue(os.path.exists(others))
        write(self.path("old/f"), b"3")
        self.assertEqual(self.place(self.path("old")), old)
        self.flush(self.path("old"))
        self.assertEqual(contents(old)[b"f"][3], b"3")

    def test_released(self) -> None:
        """A copy whose last container has gone is as young as that, and goes in time, without a restart."""
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        self.successResultOf(self.mirrors.hold("c", [self.local]))
        self.age(remote)
        self.clock.advance(1000)
        self.assertEqual(self.successResultOf(self.mirrors.unused()), [])
        self.mirrors.release("c")
        self.assertEqual(self.collect(60).removed, ())
        self.assertEqual(len(self.collect(0).removed), 1)
        self.assertFalse(os.path.exists(remote))
        self.assertEqual(self.mirrors.status(), ())
        self.assertEqual(self.place(), remote)
        self.flush()
        self.assert_equal_trees(remote)

    def test_used_again(self) -> None:
        """What was unused when it was listed, and is used when it should go, stays."""
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        self.restart()
        self.age(remote)
        found = self.successResultOf(self.mirrors.unused())
        self.mounted.add(remote[len(self.host.root) :])
        (kept,) = self.successResultOf(self.mirrors.collect(found)).kept
        self.assertIn("in use again", kept.message)
        self.mounted.clear()
        self.place()
        (kept,) = self.successResultOf(self.mirrors.collect(found)).kept
        self.assert_equal_trees(remote)

    def test_cannot_be_removed(self) -> None:
        """What belongs to somebody else stays, is named, and keeps no other copy from going."""
        for name in ("a", "b"):
            write(self.path(f"{name}/f"), b"1")
            self.place(self.path(name))
            self.flush(self.path(name))
        self.restart()
        found = self.successResultOf(self.mirrors.unused())

        def refuse(name: str, path: bytes) -> None:
            if name == "remove" and path.startswith(b"/home/.rda/" + found[0].name.encode() + b"/tree"):
                raise PermissionError(13, "Permission denied")

        self.host.connections[-1].refuse = refuse
        done = self.successResultOf(self.mirrors.collect(found))
        self.assertEqual(done.removed, (found[1].name,))
        self.assertIn("as root", done.kept[0].message)

    def test_foreign_name(self) -> None:
        """A name that is no copy's is not touched, whatever it says."""
        write(self.path("f"), b"1")
        self.place()
        for name in ("../..", "ffffffff-x", ""):
            done = self.successResultOf(self.mirrors.collect([RemoteCopy(name, "", 0, 0.0)]))
            self.assertEqual((done.removed, len(done.kept)), ((), 1))
