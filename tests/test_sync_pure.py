"""The pure core of sync: trees, ignore rules, plans, archives; and the manifest."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterable
from contextlib import closing

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from rda.errors import SyncFailed
from rda.sync import tar
from rda.sync.manifest import Manifest
from rda.sync.plan import Plan, Put, check, plan_one_way, summary
from rda.sync.tree import WHOLE, Entry, Kind, Scope, Snapshot, depth, join, lineage, parent, printable, topmost, within

names = st.sampled_from([b"a", b"b", b"c", b"\xff", b"d e"])
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)


def entry_for(kind: int, version: int) -> Entry:
    """An entry of a version: equal versions are equal entries."""
    if kind == Kind.DIRECTORY:
        return Entry(Kind.DIRECTORY, 0o700 + version % 2)
    if kind == Kind.SYMLINK:
        return Entry(Kind.SYMLINK, target=b"t%d" % version)
    return Entry(Kind.FILE, 0o644, version, version * 10**9, version, version)


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, Entry]:
    """A tree in which every parent is a directory."""
    tree = {b"": Entry(Kind.DIRECTORY, 0o755)}
    for path, kind, version in draw(
        st.lists(st.tuples(paths, st.sampled_from(list(Kind)), st.integers(0, 3)), max_size=12)
    ):
        above = list(lineage(parent(path)))
        if any(p in tree and tree[p].kind != Kind.DIRECTORY for p in above):
            continue
        for p in above:
            tree.setdefault(p, Entry(Kind.DIRECTORY, 0o755))
        if path not in tree:
            tree[path] = entry_for(kind, version)
    return tree


def carry_out(remote: dict[bytes, Entry], plan: Plan, known: Iterable[bytes]) -> dict[bytes, Entry]:
    """What a plan makes of a remote tree, with every step's conditions checked."""
    remote, ours = dict(remote), set(known)

    def remove(items: Iterable[tuple[bytes, Entry]]) -> None:
        for path, entry in items:
            assert path in ours
            assert remote[path] == entry
            assert not any(parent(p) == path for p in remote if p)
            del remote[path]

    def place(path: bytes, entry: Entry, replaces: bool) -> None:
        assert path == b"" or remote[parent(path)].kind == Kind.DIRECTORY
        assert (path in remote) == replaces
        assert not replaces or remote[path].kind == entry.kind
        remote[path] = entry

    remove(plan.clear)
    for path, entry in plan.make:
        place(path, entry, False)
    for put in (*plan.put, *plan.link):
        place(put.path, put.entry, put.ours)
    for path, entry in plan.adjust:
        place(path, entry, True)
    remove(plan.remove)
    return remote


class PathTests(SynchronousTestCase):
    """Paths are bytes with slashes."""

    def test_family(self) -> None:
        """Parents, depths and lineages."""
        self.assertEqual(parent(b"a/b"), b"a")
        self.assertEqual(parent(b"a"), b"")
        self.assertEqual([depth(p) for p in (b"", b"a", b"a/b")], [0, 1, 2])
        self.assertEqual(list(lineage(b"a/b")), [b"a/b", b"a", b""])
        self.assertEqual(join(b"/r", b""), b"/r")
        self.assertEqual(join(b"/r", b"a"), b"/r/a")
        self.assertTrue(within(b"a/b/c", {b"a/b"}))
        self.assertFalse(within(b"ab", {b"a"}))
        self.assertEqual(topmost([b"a/b", b"a", b"c/d"]), {b"a", b"c/d"})

    def test_printable(self) -> None:
        """Any name can be shown, and cannot steer a terminal."""
        self.assertEqual(printable(b"a\n\x1b[1m\xff"), "a\\n\\x1b[1m\\xff")
        self.assertEqual(printable(b""), ".")

    def test_uncertain(self) -> None:
        """An uncertain entry equals no entry that can be found."""
        entry = entry_for(Kind.FILE, 1)
        self.assertNotEqual(entry.uncertain(), entry)
        self.assertEqual(entry.uncertain().kind, entry.kind)


class PlanTests(SynchronousTestCase):
    """What has to be done."""

    @given(trees(), trees())
    @settings(max_examples=300, deadline=None)
    def test_plan_makes_equal(self, known: dict[bytes, Entry], here: dict[bytes, Entry]) -> None:
        """Carried out on what is known to be there, a plan makes the remote tree what the local one is."""
        plan = plan_one_way(known, Snapshot(here))
        self.assertEqual(carry_out(known, plan, known), here)
        self.assertFalse(plan_one_way(here, Snapshot(here)))

    @given(trees(), trees(), st.data())
    @settings(max_examples=200, deadline=None)
    def test_partial_looks(self, known: dict[bytes, Entry], here: dict[bytes, Entry], data: st.DataObject) -> None:
        """Looks at parts, one after the other, come to the same in the end when every path was in one of them."""
        remote = dict(known)
        everything = sorted({*known, *here}, key=depth)
        for path in everything:
            deep = data.draw(st.booleans())
            found = {p: e for p, e in here.items() if p == path or (deep and within(p, {path}))}
            entry = here.get(path)
            if entry is not None and entry.kind == Kind.DIRECTORY and remote.get(path, entry).kind != Kind.DIRECTORY:
                deep, found = True, {p: e for p, e in here.items() if within(p, {path})}
            if path and entry is not None and remote.get(parent(path), entry).kind != Kind.DIRECTORY:
                continue
            scope = Scope(trees=frozenset([path])) if deep else Scope(paths=frozenset([path]))
            remote = carry_out(remote, plan_one_way(remote, Snapshot(found, scope)), remote)
        self.assertEqual(remote, here)

    @given(trees(), trees(), paths)
    @settings(max_examples=100, deadline=None)
    def test_hidden_paths_stay(self, known: dict[bytes, Entry], here: dict[bytes, Entry], hidden: bytes) -> None:
        """What is ignored, or could not be looked at, is not removed."""
        visible = {p: e for p, e in here.items() if not within(p, {hidden})}
        for snapshot in (
            Snapshot(visible, ignored=frozenset([hidden])),
            Snapshot(visible, unknown={hidden: "cannot be listed"}),
        ):
            plan = plan_one_way(known, snapshot)
            self.assertFalse([p for p, _ in plan.remove if within(p, {hidden})])

    def test_suspects(self) -> None:
        """A suspect is sent although nothing about it seems to have changed."""
        entry = entry_for(Kind.FILE, 1)
        plan = plan_one_way({b"f": entry}, Snapshot({b"f": entry}), {b"f"})
        self.assertEqual(plan.put, (Put(b"f", entry, True),))

    def test_what_is_removed_last(self) -> None:
        """Only what stands in the way of something else goes before the new content is there."""
        top, directory = {b"": Entry(Kind.DIRECTORY, 0o755)}, entry_for(Kind.DIRECTORY, 0)
        file = entry_for(Kind.FILE, 1)
        known = {**top, b"a": directory, b"a/b": file, b"gone": file}
        plan = plan_one_way(known, Snapshot({**top, b"a": file}))
        self.assertEqual([path for path, _ in plan.clear], [b"a/b", b"a"])
        self.assertEqual([path for path, _ in plan.remove], [b"gone"])

    def test_safety(self) -> None:
        """An emptied root stops everything, an emptied large directory the removals; a removed one stops nothing."""
        directory = Entry(Kind.DIRECTORY, 0o755)
        files = {b"d/f%d" % n: entry_for(Kind.FILE, n) for n in range(2000)}
        known = {b"": directory, b"e": entry_for(Kind.FILE, 1), b"d": directory, **files}

        def judged(left: int, known: dict[bytes, Entry] = known) -> object:
            here = Snapshot(dict(list(known.items())[: left + 1]), WHOLE)
            halt = check(known, here, plan_one_way(known, here))
            return None if halt is None else halt.removals_only

        self.assertIs(judged(0), False)
        self.assertIsNone(judged(1))
        self.assertIs(judged(2), True)
        self.assertIsNone(judged(3))
        few = dict(list(known.items())[:6])
        self.assertIsNone(judged(0, few))

    def test_summary(self) -> None:
        """The first few are named, the others counted."""
        self.assertEqual(summary([(b"a", "x"), (b"b", "y")]), "a: x; b: y")
        self.assertTrue(summary([(b"a", "x")] * 8).endswith("(and 3 more)"))


class TarTests(SynchronousTestCase):
    """Archives, read by another program."""

    @given(
        st.lists(
            st.tuples(
                st.binary(min_size=1, max_size=300).map(
                    lambda b: b.replace(b"\0", b"n").replace(b"/", b"s").replace(b".", b"d")
                ),
                st.integers(0, 0o7777),
                st.binary(max_size=1500),
                st.integers(0, 2**33 - 1),
            ),
            max_size=5,
        )
    )
    @settings(max_examples=60, deadline=None)
    def test_files(self, members: list[tuple[bytes, int, bytes, int]]) -> None:
        """Python's tarfile finds the same files: names in any bytes and of any length, modes, times, content."""
        archive = b"".join(
            tar.member(name, tar.FILE, mode, len(data), mtime) + data + tar.padding(len(data))
            for name, mode, data, mtime in members
        )
        with tarfile.open(fileobj=io.BytesIO(archive + tar.END), errors="surrogateescape", encoding="utf-8") as found:
            read = [(os.fsencode(m.name), m.mode, found.extractfile(m).read(), m.mtime) for m in found]  # type: ignore[union-attr]
        self.assertEqual(read, members)

    def test_links_and_directories(self) -> None:
        """Links keep their targets, however long; directories are directories."""
        archive = (
            tar.member(b"d/", tar.DIRECTORY, 0o755, 0, 0)
            + tar.member(b"l", tar.SYMLINK, 0o777, 0, 0, b"x" * 150)
            + tar.member(b"m", tar.SYMLINK, 0o777, 0, 0, b"../y")
        )
        with tarfile.open(fileobj=io.BytesIO(archive + tar.END)) as found:
            directory, long, short = found.getmembers()
        self.assertTrue(directory.isdir())
        self.assertEqual((long.linkname, short.linkname), ("x" * 150, "../y"))

    def test_too_large(self) -> None:
        """A file that no header can describe is refused."""
        self.assertRaises(ValueError, tar.member, b"f", tar.FILE, 0o644, 1 << 33, 0)


class ManifestTests(SynchronousTestCase):
    """What survives."""

    def setUp(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.path = os.path.join(directory, "m.sqlite")

    def reopened(self, manifest: Manifest) -> Manifest:
        manifest.close()
        return Manifest(self.path)

    def test_results_survive(self) -> None:
        """Entries, digests, blocks and remembered values are there again."""
        manifest = Manifest(self.path)
        entry = Entry(Kind.FILE, 0o644, 5, 1, 2, (1 << 64) - 1)
        manifest.intend([(b"\xff", entry)])
        manifest.settle([(b"\xff", entry, b"digest")], ())
        manifest.remember("word", "x")
        manifest.remember_blocks(b"\xff", 5, 1, b"hashes")
        manifest = self.reopened(manifest)
        self.assertEqual(manifest.entries, {b"\xff": entry})
        self.assertEqual(manifest.digests, {b"\xff": b"digest"})
        self.assertEqual(manifest.doubtful, {})
        self.assertEqual((manifest.meta("word"), manifest.meta("other")), ("x", None))
        self.assertEqual(manifest.blocks(b"\xff"), (5, 1, b"hashes"))
        manifest.settle((), [b"\xff"])
        manifest = self.reopened(manifest)
        self.assertEqual((manifest.entries, manifest.blocks(b"\xff")), ({}, None))

    def test_intents_without_results(self) -> None:
        """An intent without a result makes an entry uncertain, and a new path doubtful."""
        manifest = Manifest(self.path)
        old, new = entry_for(Kind.FILE, 1), entry_for(Kind.FILE, 2)
        manifest.settle([(b"a", old, None)], ())
        manifest.intend([(b"a", new), (b"b", new), (b"c", new)])
        manifest.settle((), (), [b"c"])
        manifest = self.reopened(manifest)
        self.assertEqual(manifest.entries, {b"a": old.uncertain()})
        self.assertEqual(manifest.doubtful, {b"b": new})

    def test_promoted_trees(self) -> None:
        """Whole trees become entries just as they were intended, and their neighbours stay intents."""
        manifest = Manifest(self.path)
        d, f = Entry(Kind.DIRECTORY, 0o755), entry_for(Kind.FILE, 2)
        tree = {b"d": d, b"d/e": d, b"d/e/f": f, b"d/\xff": f}
        others = {b"d-1": d, b"d.x": f, b"d0": f, b"c/d": f}
        manifest.intend([*tree.items(), *others.items()])
        manifest.promote([b"d"], tree)
        self.assertEqual(manifest.entries, tree)
        manifest = self.reopened(manifest)
        self.assertEqual((manifest.entries, manifest.doubtful), (tree, others))
        manifest.promote([], {})
        self.assertEqual(self.reopened(manifest).entries, tree)

    def test_promoted_beside_old_intents(self) -> None:
        """What an earlier pass had intended in the same tree is not taken for carried out."""
        manifest = Manifest(self.path)
        d, f = Entry(Kind.DIRECTORY, 0o755), entry_for(Kind.FILE, 2)
        manifest.intend([(b"d/old", f)])
        manifest.intend([(b"d", d), (b"d/f", f)])
        manifest.promote([b"d"], {b"d": d, b"d/f": f})
        manifest = self.reopened(manifest)
        self.assertEqual((manifest.entries, manifest.doubtful), ({b"d": d, b"d/f": f}, {b"d/old": f}))

    def test_broken_file(self) -> None:
        """A file that is no manifest is replaced by an empty one."""
        with open(self.path, "wb") as file:
            file.write(b"not a database at all" * 100)
        manifest = Manifest(self.path)
        self.assertEqual(manifest.entries, {})
        manifest.close()

    def filled(self) -> int:
        """Fill a manifest that has many pages; returns its size in bytes."""
        manifest = Manifest(self.path)
        manifest.settle([(b"d/%05d" % n, entry_for(Kind.FILE, 1), None) for n in range(2000)], ())
        manifest.remember("generation", "word")
        manifest.close()
        return os.path.getsize(self.path)

    def test_damaged_pages(self) -> None:
        """A file that is damaged or cut anywhere is replaced by an empty one, or still says something that holds."""
        for place in range(1, 20):
            size = self.filled()
            with open(self.path, "r+b") as file:
                file.seek(size * place // 20)
                if place % 2:
                    file.write(os.urandom(4096))
                else:
                    file.truncate()
            manifest = Manifest(self.path)
            self.assertIn(len(manifest.entries), range(2001))
            manifest.settle([(b"new", entry_for(Kind.FILE, 1), None)], ())
            manifest = self.reopened(manifest)
            self.assertIn(b"new", manifest.entries)
            manifest.discard()

    def test_foreign_values(self) -> None:
        """So is one that holds what rda never writes."""
        self.filled()
        with closing(sqlite3.connect(self.path)) as db:
            db.execute("UPDATE entry SET inode = 'x' WHERE path = ?", (b"d/00001",))
            db.commit()
        manifest = Manifest(self.path)
        self.assertEqual(manifest.entries, {})
        manifest.close()

    def test_cannot_be_opened_now(self) -> None:
        """A file that cannot be opened at the moment, with no descriptor left, is kept."""
        self.filled()
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN

        def connect(*arguments: object, **options: object) -> sqlite3.Connection:
            raise error

        refusing = self.patch(sqlite3, "connect", connect)
        self.assertIn("unable to open", str(self.assertRaises(SyncFailed, Manifest, self.path)))
        refusing.restore()
        manifest = Manifest(self.path)
        self.assertEqual((len(manifest.entries), manifest.meta("generation")), (2000, "word"))
        manifest.close()

    def test_full_disk(self) -> None:
        """What a full disk does not take is as if it had not been said; with room again, all goes on."""
        manifest = Manifest(self.path)
        (pages,) = manifest._db.execute("PRAGMA page_count").fetchone()
        manifest._db.execute(f"PRAGMA max_page_count={pages}")
        many = [(b"%05d" % n, entry_for(Kind.FILE, 1), None) for n in range(2000)]
        for _ in range(2):
            error = self.assertRaises(SyncFailed, manifest.settle, many, ())
            self.assertIn("full", str(error))
            self.assertRaises(SyncFailed, manifest.remember_blocks, b"f", 1, 1, bytes(100_000))
        self.assertEqual((manifest.entries, manifest.damaged), ({}, False))
        manifest._db.execute("PRAGMA max_page_count=100000")
        manifest.settle(many, ())
        self.assertEqual(len(self.reopened(manifest).entries), 2000)

    def test_totals(self) -> None:
        """Entries and bytes."""
        manifest = Manifest(self.path)
        manifest.settle([(b"a", entry_for(Kind.FILE, 3), None), (b"d", entry_for(Kind.DIRECTORY, 1), None)], ())
        self.assertEqual(manifest.totals(), (2, 3))
        manifest.settle([(b"a", entry_for(Kind.FILE, 5), None), (b"b", entry_for(Kind.FILE, 1), None)], ())
        self.assertEqual(manifest.totals(), (3, 6))
        manifest.settle((), [b"a", b"never"])
        manifest = self.reopened(manifest)
        self.assertEqual(manifest.totals(), (2, 1))
        manifest.forget_everything()
        self.assertEqual(manifest.totals(), (0, 0))
        manifest.close()
