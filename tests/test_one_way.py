"""One-way mirrors: the remote tree becomes what the local one is, and nothing else is touched."""

from __future__ import annotations

import os
import shutil
from typing import Any
from unittest import mock

from rda.errors import SyncHalted
from rda.sync import content, plan, scan
from rda.sync.owner import OwnerChoice
from rda.sync.reconcile import Reconcile
from rda.sync.scan import Scanner
from rda.sync.settings import Settings
from rda.sync.tree import Scope
from tests.fakes_remote import contents
from tests.mirror_case import MirrorCase, write


class OneWayTests(MirrorCase):
    """The remote tree follows the local one."""

    def test_everything(self) -> None:
        """Modes, times, links of both kinds, empty directories and files, large files and names in any bytes arrive."""
        write(self.path("run.sh"), b"#!/bin/sh\n", 0o755)
        write(self.path("secret"), b"x", 0o400)
        write(self.path("empty"))
        write(self.path("large"), os.urandom(700_000))
        os.makedirs(self.path("hollow/inner"))
        os.chmod(self.path("hollow/inner"), 0o2770)
        os.symlink("../nowhere", self.path("link"))
        os.link(self.path("large"), self.path("hollow/same"))
        os.symlink("/etc", self.path("absolute"))
        with open(os.fsencode(self.local) + b"/\xff\n'\"x", "wb") as file:
            file.write(b"strange")
        os.utime(self.path("run.sh"), (1_000_000_000, 1_000_000_000))
        remote = self.place()
        self.flush()
        self.assert_equal_trees(remote)

    def test_changes(self) -> None:
        """Edits, deletions, renames and changes of kind arrive; what is equal is not sent again."""
        for number in range(20):
            write(self.path(f"d{number % 3}/f{number}"), b"%d" % number)
        remote = self.place()
        self.flush()
        before = len(self.host.connections[0].operations)
        self.flush()
        self.assertLess(len(self.host.connections[0].operations) - before, 3)
        write(self.path("d0/f0"), b"changed")
        os.unlink(self.path("d1/f1"))
        os.rename(self.path("d2"), self.path("moved"))
        os.unlink(self.path("d0/f3"))
        os.mkdir(self.path("d0/f3"))
        shutil.rmtree(self.path("d1"))
        write(self.path("d1"), b"a file now")
        os.chmod(self.path("moved"), 0o711)
        self.flush()
        self.assert_equal_trees(remote)

    def test_sparse(self) -> None:
        """Holes are not read, stay holes, and are found filled later."""
        mib = 1 << 20
        with open(self.path("sparse"), "wb") as file:
            for offset, data in ((3 * mib + 5, b"middle"), (9 * mib, b"end")):
                file.seek(offset)
                file.write(data)
        remote = self.place()
        self.flush()
        self.assert_equal_trees(remote)
        self.assertLess(os.stat(os.path.join(remote, "sparse")).st_blocks * 512, 3 * mib)
        with open(self.path("sparse"), "r+b") as file:
            file.seek(6 * mib - 3)
            file.write(b"across a border")
            file.truncate(8 * mib)
        self.flush()
        self.assert_equal_trees(remote)

    def test_hints(self) -> None:
        """A hint makes the mirror look again at that path, and at directories above it that it does not know."""
        remote = self.place()
        self.flush()
        write(self.path("new/deep/file"), b"x")
        self.watcher.hints[0]._changed(Scope(paths=frozenset([b"new/deep/file"])))
        self.assert_equal_trees(remote)
        shutil.rmtree(self.path("new"))
        self.watcher.hints[0]._changed(Scope(paths=frozenset([b"new"])))
        self.assert_equal_trees(remote)

    def test_one_look_for_all_who_came_before_it(self) -> None:
        """Who asks for a flush before the look of a pass has begun is served by that look; who comes later is not."""
        looks: list[str] = []
        asked: list[Any] = []
        whole, carry_out = Scanner.whole, Reconcile.carry_out

        def look(scanner: Scanner, known: Any) -> Any:
            looks.append("look")
            return whole(scanner, known)

        def carry(reconcile: Reconcile, *rest: Any) -> Any:
            if len(looks) == 1:
                write(self.path("late"), b"2")
                asked.append(self.mirrors.complete(self.local))
            return carry_out(reconcile, *rest)

        self.patch(Scanner, "whole", look)
        self.patch(Reconcile, "carry_out", carry)
        self.watcher.on_watch = lambda: asked.append(self.mirrors.complete(self.local))
        write(self.path("early"), b"1")
        remote = self.place()
        self.assertEqual(len(asked), 2)
        for done in asked:
            self.successResultOf(done)
        self.assertEqual(len(looks), 2)
        self.assert_equal_trees(remote)

    def test_changed_during_a_look(self) -> None:
        """A directory that goes away while its files are looked at leaves nothing behind on the remote."""
        write(self.path("d/e/f"), b"1")
        remote = self.place()
        self.flush()
        real = os.lstat

        def lstat(path: Any, **options: Any) -> os.stat_result:
            if path == os.fsencode(self.path("d/e")):
                raise FileNotFoundError(2, "No such file or directory", path)
            return real(path, **options)

        self.patch(content, "back_again", lambda root, paths: set())  # it is only now that it comes back
        with mock.patch.object(scan.os, "lstat", lstat):
            self.watcher.hints[0]._changed(Scope(paths=frozenset([b"d/e", b"d/e/f"])))
        self.assertEqual(set(contents(remote)), {b"d"})
        self.clock.advance(3)
        self.flush()
        self.assert_equal_trees(remote)
        shutil.rmtree(self.path("d"))
        self.flush()
        self.assertEqual(contents(remote), {})

    def test_directory_that_holds_ours(self) -> None:
        """A directory that cannot be removed because of what is ours in it is not taken for a container's."""
        write(self.path("d/f"), b"1")
        remote = self.place()
        self.flush()

        def planned(known: Any, here: Any, suspects: Any) -> plan.Plan:
            patched.stop()
            return plan.Plan(remove=((b"d", known[b"d"]),))

        self.patch(content, "back_again", lambda root, paths: set())
        patched = mock.patch.object(plan, "plan_one_way", planned)
        patched.start()
        self.flush()
        self.assert_equal_trees(remote)
        shutil.rmtree(self.path("d"))
        self.flush()
        self.assertEqual(contents(remote), {})

    def test_back_again(self) -> None:
        """A file that was away at the moment of a look, as when an editor saves, does not go on the remote."""
        write(self.path("a"), b"old")
        remote = self.place()
        self.flush()
        os.rename(self.path("a"), self.path("a~"))
        back_again = content.back_again

        def saved(root: bytes, paths: Any) -> Any:
            write(self.path("a"), b"new")
            return back_again(root, paths)

        self.patch(content, "back_again", saved)
        self.flush()
        self.assert_equal_trees(remote)
        self.assertNotIn("remove", [name for name, _ in self.host.connections[-1].operations])

    def test_foreign_files_stay(self) -> None:
        """What a container made is neither removed nor replaced: equal files are adopted, others kept beside ours."""
        remote = self.place()
        self.flush()
        write(os.path.join(remote, "cache/data"), b"made there")
        write(os.path.join(remote, "same"), b"equal")
        write(os.path.join(remote, "other"), b"theirs")
        write(self.path("same"), b"equal")
        write(self.path("other"), b"ours")
        self.flush()
        self.assertEqual(contents(remote)[b"other"][3], b"ours")
        self.assertEqual(contents(remote)[b"other.rda-conflict"][3], b"theirs")
        self.assertEqual(contents(remote)[b"cache/data"][3], b"made there")
        self.assertNotIn(b"same.rda-conflict", contents(remote))
        (status,) = self.mirrors.status()
        self.assertEqual([conflict.subject for conflict in status.conflicts], ["other"])
        self.flush()
        self.assertEqual(len(self.mirrors.status()[0].conflicts), 1)
        os.unlink(self.path("same"))
        self.flush()
        self.assertNotIn(b"same", contents(remote))
        self.assertIn(b"cache/data", contents(remote))

    def test_conflict_resolved(self) -> None:
        """A conflict is not listed any more when somebody has dealt with the copy."""
        remote = self.place()
        self.flush()
        write(os.path.join(remote, "other"), b"theirs")
        write(self.path("other"), b"ours")
        self.flush()
        self.assertEqual(len(self.mirrors.status()[0].conflicts), 1)
        os.unlink(os.path.join(remote, "other.rda-conflict"))
        self.flush()
        self.assertEqual(self.mirrors.status()[0].conflicts, ())

    def test_directory_with_foreign_file(self) -> None:
        """A directory that is gone here stays there while it holds something that was made there."""
        write(self.path("d/ours"), b"1")
        remote = self.place()
        self.flush()
        write(os.path.join(remote, "d/theirs"), b"2")
        shutil.rmtree(self.path("d"))
        self.flush()
        self.assertEqual(set(contents(remote)), {b"d", b"d/theirs"})

    def test_symlinked_parent(self) -> None:
        """A directory that a container replaced by a symbolic link is not followed; the rest goes on."""
        write(self.path("d/f"), b"1")
        outside = os.path.join(self.top, "outside")
        os.mkdir(outside)
        remote = self.place()
        self.flush()
        shutil.rmtree(os.path.join(remote, "d"))
        os.symlink(outside, os.path.join(remote, "d"))
        write(self.path("d/f"), b"changed")
        write(self.path("d/g"), b"new")
        write(self.path("h"), b"fine")
        self.flush()
        self.assertEqual(os.listdir(outside), [])
        self.assertEqual(contents(remote)[b"h"][3], b"fine")
        self.assertTrue(any("symbolic link" in p.message for p in self.mirrors.status()[0].problems))
        shutil.rmtree(self.path("d"))
        self.flush()
        self.assertTrue(os.path.islink(os.path.join(remote, "d")))

    def test_removed_remote_directory(self) -> None:
        """A directory that somebody removed on the remote is made again when something has to go there."""
        write(self.path("d/e/f"), b"1")
        remote = self.place()
        self.flush()
        shutil.rmtree(os.path.join(remote, "d"))
        write(self.path("d/e/g"), b"2")
        self.flush()
        self.assertEqual(contents(remote)[b"d/e/g"][3], b"2")

    def test_removed_tree(self) -> None:
        """A tree that was removed on the remote as a whole is sent again."""
        write(self.path("d/f"), b"1")
        remote = self.place()
        self.flush()
        shutil.rmtree(os.path.dirname(remote))
        self.flush()
        self.assert_equal_trees(remote)

    def test_racily_clean(self) -> None:
        """A change that leaves size and times as they were is found when it came right after the last one."""
        write(self.path("f"), b"one")
        remote = self.place()
        self.flush()
        mirror = self.mirrors._mirrors[self.local]
        assert mirror._manifest is not None
        found = os.stat(self.path("f"))
        self.assertIn(b"f", mirror._manifest.digests)
        write(self.path("f"), b"two")
        os.utime(self.path("f"), ns=(found.st_mtime_ns, found.st_mtime_ns))
        now = os.stat(self.path("f"))
        entry = mirror._manifest.entries[b"f"]._replace(ctime_ns=now.st_ctime_ns, mtime_ns=now.st_mtime_ns)
        mirror._manifest.entries[b"f"] = entry
        self.flush()
        self.assertEqual(contents(remote)[b"f"][3], b"two")

    def test_ignored(self) -> None:
        """Ignored paths are neither sent nor removed."""
        write(self.path("build/out"), b"1")
        write(self.path("keep"), b"1")
        remote = self.place()
        self.flush()
        write(self.path(".rdaignore"), b"build/\n*.log\n")
        write(self.path("x.log"), b"1")
        shutil.rmtree(self.path("build"))
        os.mkdir(self.path("build"))
        self.flush()
        self.assertEqual(set(contents(remote)), {b".rdaignore", b"keep", b"build", b"build/out"})

    def test_special_and_unreadable(self) -> None:
        """Pipes and sockets are reported, not sent, and do not fail a flush."""
        os.mkfifo(self.path("pipe"))
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        self.assertEqual(set(contents(remote)), {b"f"})
        (status,) = self.mirrors.status()
        self.assertEqual([problem.subject for problem in status.problems], ["pipe"])


class SingleFileTests(MirrorCase):
    """A bind mount of one file."""

    def test_in_place(self) -> None:
        """The remote file keeps its inode through edits and rename-saves: the container sees the new content."""
        source = self.path("conf")
        write(source, b"long content", 0o640)
        remote = self.place(source)
        self.flush(source)
        inode = os.stat(remote).st_ino
        write(self.path("conf.new"), b"short", 0o600)
        os.rename(self.path("conf.new"), source)
        self.flush(source)
        self.assertEqual(os.stat(remote).st_ino, inode)
        with open(remote, "rb") as file:
            self.assertEqual(file.read(), b"short")
        self.assertEqual(os.stat(remote).st_mode & 0o777, 0o600)

    def test_symbolic_link(self) -> None:
        """A source that is a link is the file that it leads to, small or large, as it is for a local daemon."""
        source, target = self.path("conf"), self.path("real.conf")
        os.symlink("real.conf", source)
        for text in (b"first", b"second" * 100_000, b"third"):
            write(target, text)
            remote = self.place(source)
            self.flush(source)
            with open(remote, "rb") as file:
                self.assertEqual(file.read(), text)
        self.assertEqual(self.mirrors.status()[0].problems, ())

    def test_vanished(self) -> None:
        """While the local file is away the remote one stays; when it is back the mirror goes on by itself."""
        source = self.path("conf")
        write(source, b"1")
        remote = self.place(source)
        self.flush(source)
        os.unlink(source)
        self.failureResultOf(self.mirrors.flush(source), SyncHalted)
        self.assertTrue(os.path.exists(remote))
        write(source, b"2")
        self.clock.advance(2.1)
        with open(remote, "rb") as file:
            self.assertEqual(file.read(), b"2")


class SafetyTests(MirrorCase):
    """Nothing is lost by accident."""

    def test_vanished(self) -> None:
        """When the root is gone the remote copy stays, the flush fails, and all is well when it is back."""
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        os.rename(self.local, self.local + ".away")
        failure = self.failureResultOf(self.mirrors.flush(self.local), SyncHalted)
        self.assertIn("is not there", str(failure.value))
        self.assertEqual(self.mirrors.status()[0].state, "halted")
        self.assertIn(b"f", contents(remote))
        os.rename(self.local + ".away", self.local)
        self.clock.advance(2.1)
        self.assertEqual(self.mirrors.status()[0].state, "idle")

    def test_emptied(self) -> None:
        """A root that is suddenly empty is kept on the remote until somebody confirms."""
        for number in range(15):
            write(self.path(f"f{number}"), b"1")
        remote = self.place()
        self.flush()
        shutil.rmtree(self.local)
        os.mkdir(self.local)
        self.failureResultOf(self.mirrors.flush(self.local), SyncHalted)
        self.assertEqual(len(contents(remote)), 15)
        self.mirrors.confirm(self.local)
        self.flush()
        self.assertEqual(contents(remote), {})

    def test_mass_removal(self) -> None:
        """Mass removals are held back while edits go on."""
        for number in range(1100):
            write(self.path(f"d/f{number}"), b"1")
        write(self.path("e"), b"1")
        remote = self.place()
        self.flush()
        shutil.rmtree(self.path("d"))
        os.mkdir(self.path("d"))
        write(self.path("e"), b"2")
        self.failureResultOf(self.mirrors.flush(self.local), SyncHalted)
        self.assertEqual(contents(remote)[b"e"][3], b"2")
        self.assertEqual(len(contents(remote)), 1102)
        self.mirrors.confirm(self.local)
        self.flush()
        self.assertEqual(set(contents(remote)), {b"d", b"e"})

    def test_removed_directory(self) -> None:
        """A directory that is removed with everything in it is nobody's accident, however large (node_modules)."""
        for number in range(1100):
            write(self.path(f"d/e{number % 7}/f{number}"), b"1")
        write(self.path("e"), b"1")
        remote = self.place()
        self.flush()
        shutil.rmtree(self.path("d"))
        self.flush()
        self.assertEqual(set(contents(remote)), {b"e"})


class OwnerTests(MirrorCase):
    """Whose things are on the remote."""

    ownership = OwnerChoice()

    def settings(self, source: str) -> Settings:
        return Settings(ownership=self.ownership)

    def owners(self) -> dict[str, Any]:
        """Who everything was given to, by path in the tree."""
        files = self.host.connections[-1]
        return {os.fsdecode(path.partition(b"/tree")[2]): owner for path, owner in files.owners.items()}

    def fill(self) -> None:
        write(self.path("d/f"), b"1")
        os.symlink("nowhere", self.path("l"))

    def test_numbers(self) -> None:
        """Everything gets the owner of the configuration: what is new then, and all of it after a new connection."""
        self.ownership = OwnerChoice("101:102")
        self.fill()
        self.place()
        self.flush()
        self.assertEqual(self.owners(), dict.fromkeys(["", "/d", "/d/f", "/l"], (101, 102)))
        self.host.connections[-1].owners.clear()
        write(self.path("d/g"), b"2")
        os.chmod(self.path("d"), 0o711)
        self.flush()
        self.assertEqual(self.owners(), dict.fromkeys(["/d", "/d/g"], (101, 102)))
        self.host.lose()
        self.flush()
        self.assertEqual(len(self.owners()), 5)

    def test_preserve(self) -> None:
        """Everything gets the numbers that it has here."""
        self.ownership = OwnerChoice("preserve")
        self.fill()
        self.place()
        self.flush()
        here = os.lstat(self.path("l"))
        self.assertEqual(self.owners(), dict.fromkeys(["", "/d", "/d/f", "/l"], (here.st_uid, here.st_gid)))

    def test_world_writable(self) -> None:
        """Everybody may write where that is asked for; by default nothing is changed."""
        for self.ownership, modes in (
            (OwnerChoice(world_writable=True), (0o777, 0o666)),
            (OwnerChoice(), (0o755, 0o644)),
        ):
            self.setUp()
            self.fill()
            remote = self.place()
            self.flush()
            found = [os.stat(os.path.join(remote, name)).st_mode & 0o777 for name in ("d", "d/f")]
            self.assertEqual(tuple(found), modes)
            self.assertEqual(self.owners(), {})

    def test_not_allowed(self) -> None:
        """A remote user who may not do that is told once, and everything else goes on."""
        self.ownership = OwnerChoice("101:102")

        def refuse(name: str, path: bytes) -> None:
            if name == "give":
                raise PermissionError(1, "Operation not permitted")

        self.host.prepare = lambda files: setattr(files, "refuse", refuse)
        self.fill()
        remote = self.place()
        self.flush()
        self.assert_equal_trees(remote)
        (problem,) = self.mirrors.status()[0].problems
        self.assertIn("Log in as root", problem.message)
        self.host.connections[-1].features = frozenset()
        write(self.path("d/g"), b"2")
        self.flush()
        self.assertIn("OpenSSH 8.0", self.mirrors.status()[0].problems[0].message)
