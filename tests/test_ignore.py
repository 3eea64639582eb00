"""Ignore rules: gitignore's, as git itself understands them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from rda.sync import ignore
from rda.sync.ignore import Rules, rules_from
from rda.sync.scan import Scanner
from rda.sync.tree import Kind

#: What patterns are put together from. Not ``a**``: what git makes of that depends on how it optimises the pattern.
SEGMENTS = [
    "a", "b", "ab", "c", "a.o", ".h", "A b", "x[1]", "x\\[1\\]", "*", "**", "?", "*.o", "a*", "*b", "a?", ".*", "[ab]",
    "[!a]", "[a-c]", "[^b]*", "\\*", "*a*",
]  # fmt: skip
PATTERNS = st.builds(
    lambda negated, anchored, segments, end: negated + anchored + "/".join(segments) + end,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=3),
    st.sampled_from(["", "", "", "/", " ", "\\ "]),
)
FILES = st.dictionaries(
    st.sampled_from(["", "a", "b", "ab", "a/c", "b/a", "c/ab"]), st.lists(PATTERNS, min_size=1, max_size=4), max_size=3
)

#: The names in each directory of the tree; the first four are directories, two levels deep.
NAMES = ["a", "b", "c", "ab", "a.o", ".h", "A b", "x[1]", "e", "#h", "!n"]


class IgnoreTests(SynchronousTestCase):
    """gitignore's rules."""

    def test_levels(self) -> None:
        """The deepest file with a matching rule decides, the last rule in it first."""
        top = rules_from(b"*.log\nbuild/\n/only-here\n", b"", None)
        low = rules_from(b"!keep.log\n", b"d", top)
        self.assertTrue(low.ignores(b"d/x.log", is_directory=False))
        self.assertFalse(low.ignores(b"d/keep.log", is_directory=False))
        self.assertTrue(top.ignores(b"d/build", is_directory=True))
        self.assertFalse(top.ignores(b"d/build", is_directory=False))
        self.assertFalse(top.ignores(b"d/only-here", is_directory=False))
        self.assertFalse(Rules(b"", []).ignores(b"a", is_directory=False))

    def test_a_directory_that_is_kept(self) -> None:
        """A pattern that keeps a directory says nothing about what another one leaves out inside."""
        rules = rules_from(b"node_modules/\n!/packages\n", b"", None)
        self.assertFalse(rules.ignores(b"packages", is_directory=True))
        self.assertTrue(rules.ignores(b"packages/node_modules", is_directory=True))

    def test_any_bytes(self) -> None:
        """Names that are no text are matched all the same."""
        self.assertTrue(rules_from(b"\xff*\n", b"", None).ignores(b"\xffx", is_directory=False))

    def test_broken_lines(self) -> None:
        """A line that is no pattern is skipped, and the others hold."""
        rules = rules_from(b"!\n[\n*.o\n", b"", None)
        self.assertTrue(rules.ignores(b"m.o", is_directory=False))


class LikeGitTests(SynchronousTestCase):
    """Random rules at several levels, against git."""

    def setUp(self) -> None:
        if shutil.which("git") is None:
            raise SkipTest("git is not installed")
        self.top = tempfile.mkdtemp(prefix="rda-test-")
        self.addCleanup(shutil.rmtree, self.top)
        subprocess.run(["git", "init", "-q", self.top], check=True)
        self.fill(self.top, 2)

    def fill(self, directory: str, depth: int) -> None:
        for name in NAMES:
            path = os.path.join(directory, name)
            if depth and name in NAMES[:4]:
                os.mkdir(path)
                self.fill(path, depth - 1)
            else:
                with open(path, "w", encoding="utf-8"):
                    pass

    @given(FILES)
    @example({"": ["*.o", "/a", "dir/", "a/b", "**/ab", "x/**", "a/**/b", "!b/a.o", "\\#h", "# e", "\\!n", "e "]})
    @example({"": ["a/**", "!a/c"], "b": ["*", "!.h"]})
    @settings(max_examples=60, deadline=None, derandomize=True)  # the same ones for every git
    def test_same_files(self, files: dict[str, list[str]]) -> None:
        """What a look at the tree finds are the files that git would not ignore."""
        written = [os.path.join(self.top, directory, ".rdaignore") for directory in files]
        for path, lines in zip(written, files.values(), strict=True):
            with open(path, "w", encoding="utf-8") as file:
                file.write("\n".join(lines))
        try:
            command = ["git", "-C", self.top, "ls-files", "-o", "-z", "--exclude-per-directory=.rdaignore"]
            listed = set(subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")) - {b""}
            entries = Scanner(os.fsencode(self.top), Kind.DIRECTORY).whole({}).entries
        finally:
            for path in written:
                os.unlink(path)
        found = {p for p, entry in entries.items() if entry.kind == Kind.FILE and not p.startswith(b".git/")}
        self.assertEqual(found, listed)


class SteadyTests(SynchronousTestCase):
    """Ignore files of strangers do not stop the process."""

    @given(
        st.lists(st.sampled_from(["a", "b", "*", "**", "/", "?", "[ab]", "/**/", "\\*"]), min_size=1, max_size=9),
        st.lists(st.text("ab*", min_size=1, max_size=3), min_size=1, max_size=4),
        st.sampled_from(["", "/"]),
    )
    @settings(max_examples=1000, deadline=None)
    def test_matches_the_same(self, pieces: list[str], names: list[str], slash: str) -> None:
        """The expressions that are matched mean what pathspec's do."""
        try:
            (pattern,) = GitIgnoreSpec.from_lines(["".join(pieces)]).patterns
        except ValueError:
            return
        if pattern.regex is None:
            return
        path = "/".join(names) + slash
        results = []
        for regex in (pattern.regex, ignore._steady(pattern.regex)):
            found = regex.match(path)
            end = found.end("ps_d") if found is not None and "ps_d" in regex.groupindex else -1
            results.append(found is not None and end in (-1, len(path)))
        self.assertEqual(results[0], results[1], (pieces, path))

    def test_ends(self) -> None:
        """Patterns with many wildcards, and names that nearly match them, are decided at once."""
        for pattern, path in (
            ("*a" * 20 + "*b", "a" * 250),
            ("?*" * 40 + "/x", "a" * 250),
            ("[ab]*" * 30 + "c", "ab" * 125),
            ("**/a/" * 20 + "b", "a/" * 500 + "a"),
            ("a/**/" * 30 + "b", "a/" * 1000 + "c"),
            ("*a*/" * 30 + "x", ("a" * 20 + "/") * 100 + "y"),
        ):
            self.assertFalse(Rules(b"", [pattern]).ignores(path.encode(), is_directory=False), pattern)
