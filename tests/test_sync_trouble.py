"""Trouble on either side: told by path, tried again, and consistent in the end; the rest is not stopped by it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from typing import Any
from unittest import mock

from rda.errors import SyncFailed, SyncHalted
from rda.sync import content, pull, scan
from rda.sync.tree import Entry, Kind
from tests.fakes_remote import contents
from tests.mirror_case import MirrorCase, write


class TroubleCase(MirrorCase):
    """A mirror in trouble."""

    def problems(self) -> dict[str, str]:
        """What the status complains about, by path."""
        return {problem.subject: problem.message for problem in self.mirrors.status()[0].problems}

    def wait(self) -> None:
        """Let enough time pass for everything that is tried again."""
        self.clock.pump([1.0] * 130)

    def refuse(self, operation: str, ending: bytes, error: OSError) -> None:
        """From here on the remote host refuses this."""

        def refuse(name: str, path: bytes) -> None:
            if name.startswith(operation) and path.endswith(ending):
                raise error

        self.host.prepare = lambda files: setattr(files, "refuse", refuse)
        for files in self.host.connections[-1:]:
            files.refuse = refuse

    def refuse_nothing(self) -> None:
        self.host.prepare = lambda files: None
        self.host.connections[-1].refuse = lambda name, path: None


class RemoteTrouble(TroubleCase):
    """What fails on the remote."""

    def test_refused_path(self) -> None:
        """A path that cannot be written fails the flush by name, the rest arrives, and it is tried again."""
        write(self.path("bad"), b"1")
        write(self.path("good"), b"1")
        self.refuse("rename", b"/bad", PermissionError(13, "Permission denied"))
        remote = self.place()
        failure = self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        self.assertIn("bad: the remote user may not write", str(failure.value))
        self.assertEqual(set(contents(remote)), {b"good"})
        self.assertIn("container", self.problems()["bad"])
        self.refuse_nothing()
        self.wait()
        self.assert_equal_trees(remote)
        self.assertEqual(self.problems(), {})
        self.flush()
        self.assertEqual(len(os.listdir(os.path.join(os.path.dirname(remote), "stage"))), 4)

    def test_disk_full(self) -> None:
        """A full disk publishes no half file, and is called by its name; when there is room again all arrives."""
        write(self.path("f"), b"old")
        remote = self.place()
        self.flush()
        self.host.connections[0].free = 0
        self.refuse("write_at", b"", OSError(errno.ENOSPC, "No space left on device"))
        write(self.path("f"), b"new" * 1000)
        failure = self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        self.assertIn("disk is full", str(failure.value))
        self.assertEqual(contents(remote)[b"f"][3], b"old")
        self.refuse_nothing()
        self.wait()
        self.assert_equal_trees(remote)
        self.assertEqual(self.problems(), {})

    def test_quota(self) -> None:
        """A quota that is used up looks like a failure on a disk with room: that is what is said."""
        write(self.path("f"), b"old")
        remote = self.place()
        self.flush()
        self.refuse("write_at", b"", OSError(errno.EIO, "the remote host answered: Failure"))
        write(self.path("f"), b"new")
        self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        self.assertIn("quota", self.problems()["f"])
        self.refuse_nothing()
        self.wait()
        self.assert_equal_trees(remote)

    def test_directory_of_root(self) -> None:
        """What is in a directory that a container gave to another user is named, with what to do; the rest goes on."""
        write(self.path("d/f"), b"1")
        write(self.path("e"), b"1")
        remote = self.place()
        self.flush()

        def refuse(name: str, path: bytes) -> None:
            if (name.startswith("rename") or name == "remove") and b"/tree/d/" in path:
                raise PermissionError(13, "Permission denied")
            if name == "set_attributes" and path.endswith(b"/tree/d"):
                raise PermissionError(13, "Permission denied")

        self.host.connections[-1].refuse = refuse
        write(self.path("d/f"), b"2")
        write(self.path("d/g"), b"2")
        write(self.path("e"), b"2")
        os.chmod(self.path("d"), 0o711)
        self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        self.assertEqual(contents(remote)[b"e"][3], b"2")
        self.assertEqual(set(self.problems()), {"d", "d/f", "d/g"})
        self.assertIn("chown", self.problems()["d/f"])
        shutil.rmtree(self.path("d"))
        self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        self.refuse_nothing()
        self.wait()
        self.assert_equal_trees(remote)
        self.assertEqual(self.problems(), {})

    def test_stage_removed(self) -> None:
        """When somebody removes rda's own directory in the middle, the next flush makes it again."""
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        shutil.rmtree(os.path.join(os.path.dirname(remote), "stage"))
        write(self.path("g"), b"2")
        self.mirrors.complete(self.local).addErrback(lambda failure: failure.trap(SyncFailed))
        self.wait()
        self.flush()
        self.assert_equal_trees(remote)

    def test_root_removed(self) -> None:
        """When somebody removes the whole sync root, it is made again; running containers are to be restarted."""
        write(self.path("f"), b"1")
        remote = self.place()
        self.successResultOf(self.mirrors.hold("c1", [self.local]))
        self.flush()
        self.assertEqual(self.problems(), {})
        shutil.rmtree(os.path.dirname(os.path.dirname(remote)))
        write(self.path("g"), b"2")
        self.flush()
        self.assert_equal_trees(remote)
        self.assertIn("restart them", self.problems()[self.local])
        self.successResultOf(self.mirrors.complete(self.local, starting=True))
        self.assertEqual(self.problems(), {})

    def test_tree_replaced(self) -> None:
        """A file in the tree's place is not written through; the mirror says what to remove."""
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        shutil.rmtree(remote)
        write(remote, b"a file")
        failure = self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        self.assertIn("is not a directory. Remove it", str(failure.value))
        os.unlink(remote)
        self.wait()
        self.flush()
        self.assert_equal_trees(remote)


class TwinTests(TroubleCase):
    """Names that differ by case or Unicode form only."""

    def test_remote_folds(self) -> None:
        """Where the remote takes them for one, the first has the name; the other is named, and arrives when it can."""
        self.host.prepare = lambda files: setattr(files, "folds", True)
        for name in ("README", "readme", "d/f", "D/f", "caf\u00e9", "cafe\u0301"):
            write(self.path(name), name.encode())
        remote = self.place()
        self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        self.assertEqual(set(contents(remote)), {b"README", b"D", b"D/f", "cafe\u0301".encode()})
        self.assertEqual(contents(remote)[b"README"][3], b"README")
        self.assertIn("differs from README by case", self.problems()["readme"])
        os.unlink(self.path("README"))
        shutil.rmtree(self.path("D"))
        os.unlink(self.path("cafe\u0301"))
        self.mirrors.complete(self.local).addErrback(lambda failure: failure.trap(SyncFailed))
        self.wait()
        self.assert_equal_trees(remote)
        self.assertEqual(self.problems(), {})

    def test_told_apart(self) -> None:
        """Where it does not, they are as any other names."""
        for name in ("README", "readme", "caf\u00e9", "cafe\u0301"):
            write(self.path(name), name.encode())
        remote = self.place()
        self.flush()
        self.assert_equal_trees(remote)

    def test_folds_here(self) -> None:
        """What this machine cannot tell from a file of its own is no change of that file."""
        write(self.path("readme"), b"1")
        with mock.patch.object(pull, "_now", return_value=None), self.assertRaises(pull.Changed):
            pull._unchanged(os.fsencode(self.path("readme")), Entry(Kind.FILE))
        with mock.patch.object(pull, "_now", return_value=Entry(Kind.FILE)), self.assertRaises(OSError) as raised:
            pull._unchanged(os.fsencode(self.path("README")), None)
        self.assertIn("differs from readme by case", str(raised.exception))


class LocalTrouble(TroubleCase):
    """What fails here."""

    def unreadable(self, *names: str) -> set[str]:
        """Have the kernel refuse to open these files, for as long as they are in the set that is returned."""
        refused = {os.path.join(self.local, name) for name in names}
        real = os.open

        def open(path: Any, *arguments: Any, **options: Any) -> int:
            if os.fsdecode(path) in refused:
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return real(path, *arguments, **options)

        self.patch(content.os, "open", open)
        return refused

    def test_unreadable_file(self) -> None:
        """A file that cannot be read is named, and its remote copy stays; no flush fails for it; then it arrives."""
        write(self.path("f"), b"1")
        write(self.path("secret"), b"1")
        write(self.path("large"), b"1" * 300_000)
        remote = self.place()
        self.flush()
        refused = self.unreadable("secret", "large")
        for name in ("f", "secret", "large"):
            write(self.path(name), b"2" * 300_000)
        self.flush()
        self.assertEqual(
            {name: contents(remote)[name][3][:1] for name in (b"f", b"secret", b"large")},
            {b"f": b"2", b"secret": b"1", b"large": b"1"},
        )
        self.assertEqual(self.problems(), dict.fromkeys(("secret", "large"), "cannot be read: Permission denied"))
        refused.clear()
        self.wait()
        self.assert_equal_trees(remote)
        self.assertEqual(self.problems(), {})

    def test_manifest_destroyed(self) -> None:
        """A manifest that is destroyed under a running rda is begun anew, and the mirror mends itself."""
        for number in range(1000):
            write(self.path(f"f{number}"), b"1")
        remote = self.place()
        self.flush()
        manifest: Any = self.mirrors._mirrors[self.local]._manifest
        manifest._db.execute("DROP TABLE entry")
        write(self.path("new"), b"22")
        failure = self.failureResultOf(self.mirrors.complete(self.local), SyncFailed)
        self.assertIn("cannot be used: no such table", str(failure.value))
        self.wait()
        self.flush()
        self.assert_equal_trees(remote)
        write(self.path("f3"), b"333")
        os.unlink(self.path("f2"))
        self.flush()
        self.assert_equal_trees(remote)

    def test_unreadable_directory(self) -> None:
        """What is below a directory that cannot be listed is not taken for removed."""
        write(self.path("d/f"), b"1")
        write(self.path("e"), b"1")
        remote = self.place()
        self.flush()
        refused, real = [os.fsencode(self.path("d"))], os.scandir

        def scandir(path: Any) -> Any:
            if path in refused:
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return real(path)

        self.patch(scan.os, "scandir", scandir)
        write(self.path("e"), b"2")
        self.flush()
        self.assertEqual((contents(remote)[b"d/f"][3], contents(remote)[b"e"][3]), (b"1", b"2"))
        self.assertEqual(set(self.problems()), {"d"})
        refused.clear()
        self.flush()
        self.assertEqual(self.problems(), {})

    def test_changes_while_it_is_read(self) -> None:
        """A file that changes whenever it is read is sent again until it is quiet; the flush does not wait for that."""
        write(self.path("log"), b"")
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        busy, real = [True], os.fstat

        def fstat(descriptor: int) -> os.stat_result:
            if busy:
                with open(self.path("log"), "ab") as file:
                    file.write(b"line")
            return real(descriptor)

        self.patch(content.os, "fstat", fstat)
        write(self.path("log"), b"line")
        write(self.path("f"), b"2")
        self.flush()
        self.assertEqual(contents(remote)[b"f"][3], b"2")
        self.assertIn("keeps changing", self.problems()["log"])
        busy.clear()
        self.wait()
        self.assert_equal_trees(remote)
        self.assertEqual(self.problems(), {})

    def test_special_files(self) -> None:
        """Pipes, sockets and devices are named, and not sent; when a file takes the place of one it is."""
        write(self.path("f"), b"1")
        os.mkfifo(self.path("pipe"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path("socket"))
        remote = self.place()
        self.flush()
        self.assertEqual(set(contents(remote)), {b"f"})
        self.assertEqual(set(self.problems()), {"pipe", "socket"})
        os.unlink(self.path("f"))
        os.mkfifo(self.path("f"))
        for name in ("pipe", "socket"):
            os.unlink(self.path(name))
            write(self.path(name), b"2")
        self.flush()
        self.assertEqual(set(self.problems()), {"f"})
        self.assertEqual(
            {name: contents(remote)[name][3] for name in (b"pipe", b"socket")}, {b"pipe": b"2", b"socket": b"2"}
        )

    def test_root_replaced_by_file(self) -> None:
        """A root that is of another kind now is kept on the remote, until it is a directory again."""
        write(self.path("f"), b"1")
        remote = self.place()
        self.flush()
        os.rename(self.local, self.local + ".away")
        write(self.local, b"a file")
        self.failureResultOf(self.mirrors.complete(self.local), SyncHalted)
        self.assertIn(b"f", contents(remote))
        os.unlink(self.local)
        os.rename(self.local + ".away", self.local)
        self.wait()
        self.assertEqual(self.mirrors.status()[0].state, "idle")
        self.assert_equal_trees(remote)
