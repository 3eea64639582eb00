"""The documents say what is there: options, commands, keys; and lead to where they say."""

from __future__ import annotations

import plistlib
import re
from io import StringIO
from pathlib import Path

from docutils.core import publish_string
from docutils.writers.manpage import Writer
from twisted.scripts.twistd import ServerOptions
from twisted.trial.unittest import SynchronousTestCase

from rda.command import make_parser
from rda.tap import Options

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.rst"), *sorted((ROOT / "docs").rglob("*.rst"))]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


class DocumentTests(SynchronousTestCase):
    def test_options(self) -> None:
        """Every option of the agent is in the manual page and in the README, and nothing else is."""
        options = {f"--{name.rstrip('=')}" for name in Options().longOpt} - {"--help"}
        self.assertEqual(set(re.findall(r"^(--[a-z][a-z-]+)", text("docs/rda.1.rst"), re.MULTILINE)), options)
        self.assertEqual(
            set(re.findall(r"^``(--[a-z-]+)``", text("README.rst"), re.MULTILINE)), options - {"--version"}
        )

    def test_commands(self) -> None:
        """Every command of rda is in the manual page."""
        section = text("docs/rda.1.rst").partition("\nCOMMANDS\n")[2].partition("\nEXIT STATUS\n")[0]
        named = set(re.findall(r"^\*\*([a-z]+)\*\*|(?<=, )\*\*([a-z]+)\*\* ", section, re.MULTILINE))
        words = {first or second for first, second in named}
        (choices,) = (action.choices for action in make_parser("rda")._actions if isinstance(action.choices, dict))
        self.assertEqual(set(choices) - words, set())

    def test_links(self) -> None:
        """A document that another one leads to is there."""
        for document in DOCUMENTS:
            for target in re.findall(r"<([\w./-]+\.rst)>`_", document.read_text(encoding="utf-8")):
                with self.subTest(document=document.name, target=target):
                    self.assertTrue((document.parent / target).exists())

    def test_index(self) -> None:
        """The index leads to every document."""
        index = text("docs/index.rst")
        inside = [p.name for p in DOCUMENTS if p.parent == ROOT / "docs"]
        self.assertEqual([name for name in inside if name not in index], ["index.rst"])

    def test_launch_agent(self) -> None:
        """macOS can read the launch agent, and what it starts is the agent with options that there are."""
        agent = plistlib.loads((ROOT / "etc/launchd/rda.plist").read_bytes())
        program, *words = agent["ProgramArguments"]
        self.assertEqual((Path(program).name, agent["Umask"]), ("twistd", 0o077))
        ServerOptions().parseOptions(words[: words.index("rda")])
        own = [word for word in words[words.index("rda") :] if word.startswith("--")]
        self.assertEqual([word for word in own if f"{word[2:]}=" not in Options().longOpt], [])

    def test_sound(self) -> None:
        """Every document is sound reStructuredText, and the manual page becomes one."""
        for document in DOCUMENTS:
            complaints = StringIO()
            settings = {"warning_stream": complaints, "report_level": 2, "syntax_highlight": "none"}
            publish_string(document.read_text(encoding="utf-8"), str(document), settings_overrides=settings)
            self.assertEqual(complaints.getvalue(), "", document)
        page = publish_string(text("docs/rda.1.rst"), writer=Writer(), settings_overrides={"halt_level": 2})
        self.assertIn(b".SH COMMANDS", page)
