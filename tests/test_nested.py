"""Sources that lie within other sources: one copy for both, where both then hold what they would hold on their own."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from rda.errors import LinkDown, RdaError, SyncFailed
from rda.sync.settings import Settings
from rda.sync.source import kind_of
from rda.sync.tree import Scope
from rda.sync.uses import GRACE, Uses, above, below
from tests.fakes_remote import contents
from tests.mirror_case import MirrorCase, write

#: What is written last, each time something else.
_NUMBERS = itertools.count()


class NestedCase(MirrorCase):
    """``/local``, mounted as ``outer``, and ``/local/lib``, mounted as ``inner``."""

    #: By the name of the source's directory.
    modes: dict[str, str]
    plain = False

    def settings(self, source: str) -> Settings:
        return Settings(self.modes.get(os.path.basename(source), "one-way"), plain=self.plain)

    def setUp(self) -> None:
        self.modes = {}
        self.remote: dict[str, str] = {}
        super().setUp()
        self.lib = self.path("lib")
        write(self.path("lib/code"), b"1")
        write(self.path("main"), b"1")

    def mount(self, container: str, source: str, **options: Any) -> str:
        """Where a new container has a source mounted."""
        remote = self.place(source, **options)
        self.hold(container, source, remote)
        return remote

    def flush(self, source: str | None = None) -> None:
        """As a container that has it mounted where it was placed last."""
        mounted = self.remote.get(source or self.local, "")
        self.successResultOf(self.mirrors.complete(source or self.local, [mounted]))

    def hold(self, container: str, source: str, remote: str, created: bool = True) -> None:
        self.remote[source] = remote[len(self.host.root) :]
        self.successResultOf(self.mirrors.hold(container, [source], [self.remote[source]], created=created))

    def apart(self, source: str) -> str:
        """Why a source has a copy of its own, as the status tells."""
        return next(status.apart for status in self.mirrors.status() if status.source == source)

    def why_apart(self) -> str:
        """Mount both, the outer one first; returns why there are two copies, as the create is warned."""
        outer = self.mount("outer", self.local)
        place = self.successResultOf(self.mirrors.place(self.lib))
        self.assertFalse((self.host.root + place.remote).startswith(outer + "/"))
        self.assertIn(f"{self.local} has another: ", self.apart(self.lib))
        return place.apart


class OneCopyTests(NestedCase):
    """The outer mount is there first."""

    def test_one_copy(self) -> None:
        """The inner mount is the directory in the outer one's copy, and complete when it is flushed."""
        outer = self.mount("outer", self.local)
        inner = self.mount("inner", self.lib)
        self.assertEqual(inner, os.path.join(outer, "lib"))
        write(self.path("lib/new"), b"2")
        self.flush(self.lib)
        self.assert_equal_trees(outer)
        (status,) = self.mirrors.status()
        self.assertEqual((status.nested, set(status.containers)), ((self.lib,), {"outer", "inner"}))

    def test_made_in_one_step_with_the_outer(self) -> None:
        """What both mount is the directory that stays, also when everything in it arrives in one stream later."""
        self.host.commands = True
        for number in range(150):
            write(self.path(f"lib/deep/f{number}"), b"x")
        outer = self.mount("outer", self.local)
        inner = self.mount("inner", self.lib)
        inode = os.stat(inner).st_ino
        self.flush(self.lib)
        self.assertEqual(os.stat(inner).st_ino, inode)
        self.assert_equal_trees(outer)

    def test_new_directory(self) -> None:
        """An inner source that is made by the create itself is made over there before its place is told."""
        outer = self.mount("outer", self.local)
        self.flush()
        inner = self.mount("inner", self.path("made/by/docker"), create_missing=True)
        self.assertTrue(os.path.isdir(inner))
        self.assertEqual(inner, os.path.join(outer, "made/by/docker"))

    def test_innermost_of_three(self) -> None:
        """A source within a source within a source is in the outermost one's copy."""
        write(self.path("lib/deep/f"), b"1")
        outer = self.mount("outer", self.local)
        self.mount("inner", self.lib)
        self.assertEqual(self.mount("innermost", self.path("lib/deep")), os.path.join(outer, "lib/deep"))

    def test_comes_back(self) -> None:
        """In two-way mode what is written through the inner mount comes back."""
        self.modes = {"local": "two-way", "lib": "two-way"}
        self.mount("outer", self.local)
        inner = self.mount("inner", self.lib)
        self.flush()
        write(os.path.join(inner, "made"), b"there")
        self.flush(self.lib)
        with open(self.path("lib/made"), "rb") as file:
            self.assertEqual(file.read(), b"there")

    def test_trouble_elsewhere(self) -> None:
        """What is wrong in the rest of the outer tree does not hold up who has the inner one mounted."""
        self.mount("outer", self.local)
        self.mount("inner", self.lib)

        def refuse(name: str, path: bytes) -> None:
            if name.startswith("rename") and path.endswith((b"/other", b"/worse")):
                raise PermissionError(13, "Permission denied")

        self.host.connections[-1].refuse = refuse
        write(self.path("other"), b"1")
        self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        inner = self.host.root + self.successResultOf(self.mirrors.place(self.lib)).remote
        self.successResultOf(self.mirrors.complete(self.lib, [inner]))
        write(self.path("lib/worse"), b"1")
        self.failureResultOf(self.mirrors.complete(self.lib, [inner]), SyncFailed)

    def test_directory_stays_what_is_mounted(self) -> None:
        """An inner source that is removed and made again here is the same directory over there, empty in between."""
        write(self.path("lib/sub/f"), b"1")
        outer = self.mount("outer", self.local)
        inner = self.mount("inner", self.path("lib/sub"))
        self.flush()
        inode = os.stat(inner).st_ino
        shutil.rmtree(self.lib)
        self.flush()
        self.assertEqual(contents(outer).keys(), {b"main", b"lib", b"lib/sub"})
        write(self.path("lib/sub/f"), b"2")
        self.flush()
        self.assert_equal_trees(outer)
        self.assertEqual(os.stat(inner).st_ino, inode)
        self.mirrors.release("inner")
        shutil.rmtree(self.lib)
        self.flush()
        self.assert_equal_trees(outer)

    def test_link_down(self) -> None:
        """Without a link there is no place in the outer copy either; later there is."""
        outer = self.mount("outer", self.local)
        self.host.lose()
        self.host.down = True
        self.failureResultOf(self.mirrors.place(self.lib), LinkDown)
        self.host.down = False
        self.assertEqual(self.mount("inner", self.lib), os.path.join(outer, "lib"))

    def test_outer_stopping(self) -> None:
        """Who waits for a place when rda stops is told so."""
        self.mount("outer", self.local)
        mirror = self.mirrors._mirrors[self.local]
        mirror._busy = True  # a pass that does not end
        waiting = self.mirrors.place(self.lib)
        self.assertNoResult(waiting)
        self.successResultOf(self.mirrors.stopService())
        self.failureResultOf(waiting, SyncFailed)


class ApartTests(NestedCase):
    """Two copies, because one would not do."""

    def test_left_out(self) -> None:
        """What rules keep out of the outer mount is in the inner one all the same, without a warning."""
        write(self.path(".rdaignore"), b"lib/\n")
        self.assertEqual(self.why_apart(), "")

    def test_something_in_it_left_out(self) -> None:
        """Rules of the outer directory do not reach into the inner mount."""
        write(self.path(".rdaignore"), b"*.log\n")
        write(self.path("lib/deep/x.log"), b"1")
        self.assertIn("leaves out lib/deep/x.log", self.why_apart())

    def test_own_rules(self) -> None:
        """Rules of its own are the same in both, and so are those from above that leave out nothing here."""
        write(self.path(".rdaignore"), b"*.log\n/build\n")
        write(self.path("lib/.rdaignore"), b"*.tmp\n*.log\n")
        for name in ("x.log", "sub/y.tmp", "build"):
            write(self.path(f"lib/{name}"), b"1")
        outer = self.mount("outer", self.local)
        self.assertEqual(self.mount("inner", self.lib), os.path.join(outer, "lib"))

    def test_rules_come_later(self) -> None:
        """When a rule leaves something out of a mounted directory the status says so."""
        self.mount("outer", self.local)
        self.mount("inner", self.lib)
        write(self.path("lib/x.log"), b"1")
        write(self.path(".rdaignore"), b"*.log\n")
        self.flush()
        (problem,) = self.mirrors.status()[0].problems
        self.assertEqual(problem.subject, "lib")
        self.assertIn("leaves out lib/x.log. A new container", problem.message)

    def test_other_mode(self) -> None:
        """Each mount keeps its own mode."""
        self.modes = {"lib": "two-way"}
        self.assertIn("rules for the two differ", self.why_apart())

    def test_policy(self) -> None:
        """Under a policy nothing is mounted from where a container could put a link to the rest of the remote host."""
        self.plain = True
        self.assertIn("a policy says what may be mounted", self.why_apart())
        (inner,) = self.mirrors.inner_copies(self.local)
        reason = self.successResultOf(self.mirrors.join(inner, self.local, False))
        self.assertIn("a policy says", reason)

    def test_symbolic_link(self) -> None:
        """What is reached through a symbolic link is somewhere else."""
        shutil.move(self.lib, os.path.join(self.top, "elsewhere"))
        os.symlink("../elsewhere", self.lib)
        self.assertIn("symbolic link", self.why_apart())

    def test_file(self) -> None:
        """A single file has a copy of its own, which is written in place."""
        self.lib = self.path("lib/code")
        self.assertEqual(self.why_apart(), "")

    def test_volume(self) -> None:
        """A volume has a copy of its own: it outlives every container."""
        outer = self.mount("outer", self.local)
        self.assertFalse(self.place(self.lib, alone=True).startswith(outer + "/"))

    def test_replaced_over_there(self) -> None:
        """A directory that a container has replaced by a symbolic link is not mounted."""
        outer = self.mount("outer", self.local)
        self.flush()
        shutil.rmtree(os.path.join(outer, "lib"))
        os.symlink("/etc", os.path.join(outer, "lib"))
        place = self.successResultOf(self.mirrors.place(self.lib))
        self.assertIn("symbolic link", place.apart)

    def test_inner_first(self) -> None:
        """An inner mount that was there first keeps its copy, until nothing has it any more."""
        first = self.mount("inner", self.lib)
        outer = self.mount("outer", self.local)
        place = self.successResultOf(self.mirrors.place(self.lib))
        self.assertEqual(self.host.root + place.remote, first)
        self.assertIn("mounted from a copy of its own first", place.apart)
        self.hold("inner 2", self.lib, first)
        self.mirrors.release("inner")
        self.mirrors.release("inner 2")
        self.assertEqual(self.mount("inner 3", self.lib), os.path.join(outer, "lib"))

    def test_both_follow(self) -> None:
        """Two copies of the same directory both follow what happens here."""
        inner = self.mount("inner", self.lib)
        outer = self.mount("outer", self.local)
        write(self.path("lib/code"), b"2")
        for source in (self.local, self.lib):
            self.flush(source)
        self.assertEqual(contents(inner)[b"code"], contents(outer)[b"lib/code"])


class JoinTests(NestedCase):
    """The inner mount is there first, and none of its containers has ever been started when the outer one comes."""

    def setUp(self) -> None:
        super().setUp()
        self.inner = self.mount("inner", self.lib)
        self.flush(self.lib)
        write(os.path.join(self.inner, "made there"), b"x")

    def join(self, started: bool = False) -> str:
        """Mount the outer one too; returns why there are two copies."""
        self.outer = self.mount("outer", self.local)
        (inner,) = self.mirrors.inner_copies(self.local)
        self.assertEqual(inner, self.lib)
        return self.successResultOf(self.mirrors.join(self.lib, self.local, started))

    def assert_one(self) -> None:
        """Both mounts are one directory, and follow what happens here."""
        self.assertTrue(os.path.samefile(self.inner, os.path.join(self.outer, "lib")))
        write(self.path("lib/news"), b"%d" % next(_NUMBERS))
        self.flush(self.lib)
        self.assert_equal_trees(self.outer)

    def test_joined(self) -> None:
        """The inner mount's path leads into the outer copy from then on; a later one is placed there at once."""
        self.assertEqual(self.join(), "")
        self.assert_one()
        (status,) = self.mirrors.status()
        self.assertEqual((status.nested, set(status.containers)), ((self.lib,), {"inner", "outer"}))
        self.assertEqual(self.mount("inner 2", self.lib), os.path.join(self.outer, "lib"))
        self.assertEqual(self.mirrors.inner_copies(self.local), {})

    def test_restart(self) -> None:
        """A restarted rda finds out, whether the containers or one of their calls come first."""
        self.join()
        for held in (True, False):
            self.restart()
            if held:
                self.hold("inner", self.lib, self.inner, created=False)
            self.assert_one()
            self.assertEqual(len(self.mirrors.status()), 1)

    def test_started(self) -> None:
        """A container that has been started keeps what it has mounted."""
        self.assertIn("mounted from a copy of its own first", self.join(started=True))
        self.assertFalse(os.path.islink(self.inner))
        write(self.path("lib/new"), b"2")
        self.flush(self.lib)
        self.assertIn(b"new", contents(self.inner))

    def test_not_for_all(self) -> None:
        """What would not hold the same stays apart, told in the status alone where that is what a rule is for."""
        write(self.path(".rdaignore"), b"lib\n")
        self.assertEqual(self.join(), "")
        self.assertFalse(os.path.islink(self.inner))
        self.assertIn("left out", self.apart(self.lib))

    def test_parted(self) -> None:
        """When nothing has either mounted any more, a new inner mount has its copy as it was."""
        self.join()
        for container in ("inner", "outer"):
            self.mirrors.release(container)
        self.clock.advance(GRACE + 1)
        for _ in range(2):
            self.assertEqual(self.mount("inner", self.lib), self.inner)
            self.assertFalse(os.path.islink(self.inner))
            self.assertEqual(contents(self.inner)[b"made there"][3], b"x")
            self.flush(self.lib)
            self.restart()

    def test_outer_gone(self) -> None:
        """While a container has the inner one mounted the outer copy stays, and another one gets the same."""
        self.join()
        self.mirrors.release("outer")
        self.clock.advance(GRACE + 1)
        self.assertEqual(self.successResultOf(self.mirrors.unused()), [])
        self.assertTrue(os.path.samefile(self.mount("inner 2", self.lib), self.inner))
        self.assert_one()

    def test_rules_came_between(self) -> None:
        """Another container of a source that is a link gets the link, whatever a rule says by now."""
        self.join()
        write(self.path(".rdaignore"), b"lib\n")
        self.flush()
        self.assertEqual(self.mount("inner 2", self.lib), self.inner)

    def test_collected(self) -> None:
        """The copy that is a link goes when nothing uses it, and the source starts anew."""
        self.join()
        for container in ("inner", "outer"):
            self.mirrors.release(container)
        self.clock.advance(GRACE + 1)
        unused = self.successResultOf(self.mirrors.unused())
        self.assertEqual({copy.source for copy in unused}, {self.local, self.lib})
        self.assertEqual(self.successResultOf(self.mirrors.collect(unused)).kept, ())
        self.mount("inner", self.lib)
        self.flush(self.lib)
        self.assertEqual(contents(self.inner).keys(), {b"code"})

    def test_one_inside_the_inner(self) -> None:
        """What was mounted from the inner one's copy comes along."""
        write(self.path("lib/deep/f"), b"1")
        deep = self.mount("deep", self.path("lib/deep"))
        self.assertEqual(deep, os.path.join(self.inner, "deep"))
        self.join()
        self.assertTrue(os.path.samefile(deep, os.path.join(self.outer, "lib/deep")))
        self.restart()
        write(self.path("lib/deep/f"), b"2")
        self.flush(self.path("lib/deep"))
        self.assertEqual(contents(deep)[b"f"][3], b"2")

    def test_refused(self) -> None:
        """Where no link can be made, the copy is as it was and goes on."""
        outer = self.mount("outer", self.local)

        def refuse(name: str, path: bytes) -> None:
            if name == "symlink":
                raise PermissionError(13, "Permission denied")

        self.host.connections[-1].refuse = refuse
        reason = self.successResultOf(self.mirrors.join(self.lib, self.local, False))
        self.assertIn("cannot be replaced by a link: Permission denied", reason)
        write(self.path("lib/new"), b"2")
        for source in (self.lib, self.local):
            self.flush(source)
        self.assertIn(b"new", contents(self.inner))
        self.assert_equal_trees(outer)

    def test_foreign_link(self) -> None:
        """A link that rda did not make is not followed."""
        self.join()
        self.restart()
        os.unlink(self.inner)
        os.symlink("/etc", self.inner)
        self.failureResultOf(self.mirrors.complete(self.lib, [self.remote[self.lib]]), SyncFailed)

    def test_both_at_once(self) -> None:
        """It is seen too when the inner one is only just getting its place, and made by that."""
        self.outer = self.mount("outer", self.local)
        self.mirrors.release("outer")
        waiting: list[Any] = []
        in_thread = self.mirrors._pool.tools.in_thread

        def held_up(function: Any, *arguments: Any) -> Any:
            if function is not kind_of:
                return in_thread(function, *arguments)
            waiting.append(Deferred())
            return waiting[-1].addCallback(lambda _: in_thread(function, *arguments))

        self.mirrors._pool.tools = replace(self.mirrors._pool.tools, in_thread=held_up)
        new = self.path("new")
        inner = self.mirrors.place(new, create_missing=True)
        self.mount("outer", self.local)
        self.assertIn(new, self.mirrors.inner_copies(self.local))
        joining = self.mirrors.join(new, self.local, False)
        self.assertNoResult(joining)
        while waiting:
            waiting.pop(0).callback(None)
        self.assertEqual(self.successResultOf(joining), "")
        remote = self.host.root + self.successResultOf(inner).remote
        self.assertTrue(os.path.samefile(remote, os.path.join(self.outer, "new")))

    def test_lost_at_every_step(self) -> None:
        """Wherever the connection is lost, a restart finds either two copies or one, and all is well with it."""
        for step in range(1, 60):
            self.host.prepare = lambda files: None
            self.setUp()
            self.outer = self.mount("outer", self.local)
            self.flush()
            files = self.host.connections[-1]
            files.fail_at = len(files.operations) + step
            joining = self.mirrors.join(self.lib, self.local, False)
            joining.addErrback(lambda failure: failure.trap(RdaError))
            if not files.lost:
                self.assertGreater(step, 5)
                return
            self.restart()
            self.hold("inner", self.lib, self.inner, created=False)
            self.hold("outer", self.local, self.outer, created=False)
            write(self.path("lib/new"), b"2")
            self.flush(self.lib)
            self.flush()
            self.assertIn(b"new", contents(os.path.realpath(self.inner)))
            self.assert_equal_trees(self.outer)


class LifeTests(NestedCase):
    """What becomes of the copy that several sources are mounted from."""

    def test_outer_gone(self) -> None:
        """While a container has the inner source mounted the copy lives on, and is collected after that."""
        outer = self.mount("outer", self.local)
        inner = self.mount("inner", self.lib)
        self.mirrors.release("outer")
        self.clock.advance(1000)
        self.assertEqual(self.successResultOf(self.mirrors.unused()), [])
        write(self.path("lib/new"), b"2")
        self.watcher.hints[0]._changed(Scope(paths=frozenset([b"lib/new"])))
        self.assertIn(b"new", contents(inner))
        other = os.path.join(self.top, "local/other")
        os.mkdir(other)
        self.assertFalse(self.mount("other", other).startswith(outer))
        self.mirrors.release("inner")
        self.clock.advance(1000)
        (unused,) = self.successResultOf(self.mirrors.unused())
        self.assertEqual(unused.source, self.local)
        self.successResultOf(self.mirrors.collect([unused]))
        self.assertFalse(os.path.exists(outer))

    def test_restart(self) -> None:
        """A restarted rda learns from the containers what is mounted from whose copy."""
        outer = self.mount("outer", self.local)
        inner = self.mount("inner", self.lib)
        self.flush()
        self.restart()
        write(self.path("lib/new"), b"2")
        mounted = [inner[len(self.host.root) :]]
        self.successResultOf(self.mirrors.complete(self.lib, mounted))  # a start can come before the list of containers
        self.assertIn(b"new", contents(inner))
        self.hold("inner", self.lib, inner, created=False)
        (status,) = self.mirrors.status()
        self.assertEqual((status.source, status.nested), (self.local, (self.lib,)))
        self.assertEqual(self.mount("inner 2", self.lib), inner)
        shutil.rmtree(self.lib)
        self.flush()
        self.assertTrue(os.path.isdir(os.path.join(outer, "lib")))

    def test_named(self) -> None:
        """People can name the inner source: the mirror that it is in is meant."""
        self.mount("outer", self.local)
        self.mount("inner", self.lib)
        self.successResultOf(self.mirrors.flush(self.lib))
        self.successResultOf(self.mirrors.pause(self.lib))
        self.assertEqual([status.state for status in self.mirrors.status()], ["paused"])
        self.assertIsNotNone(self.successResultOf(self.mirrors.measure(self.lib)))


class UsesTests(SynchronousTestCase):
    """The table of who uses what."""

    def test_creates_end(self) -> None:
        """A place counts as used until every create that got it has ended, or for a while."""
        uses = Uses()
        uses.give("/a/b", "/a", 0.0)
        uses.give("/a/b", "/a", 1.0)
        uses.taken(["/a/b", "/c"])
        self.assertEqual(uses.servers("/a/b"), ("/a",))
        uses.taken(["/a/b"])
        self.assertEqual((uses.servers("/a/b"), uses.is_used("/a")), ((), True))
        uses.give("/a/b", "/a", 2.0)
        self.assertTrue(uses.expire(2.0 + GRACE - 1))
        self.assertFalse(uses.expire(2.0 + GRACE))
        self.assertFalse(uses.is_used("/a"))

    def test_tables(self) -> None:
        """Containers count for the server of what they have mounted."""
        uses = Uses()
        uses.hold("1", {"/a": "/a", "/x": "/x"})
        uses.hold("2", {"/a/b": "/a"})
        self.assertEqual(uses.containers("/a"), ("1", "2"))
        self.assertEqual((uses.nested("/a"), uses.nested("/x")), (("/a/b",), ()))
        uses.release("1")
        self.assertEqual((uses.is_used("/a"), uses.is_mounted_itself("/a")), (True, False))
        self.assertEqual(uses.servers("/a/b"), ("/a",))

    def test_paths(self) -> None:
        """Paths above, and below."""
        self.assertEqual(list(above("/a/b/c")), ["/a/b", "/a", "/"])
        self.assertEqual((below("/a", "/a"), below("/a", "/a/b/c")), (b"", b"b/c"))
