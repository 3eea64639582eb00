"""Hundreds of docker commands, run on the daemon's own socket and then through rda: every answer has to be the same.

A scenario, ``tests/soak/scenarios/*.txt``, is a list of command lines that build on each other. It runs once each way,
with everything removed in between; what differs from run to run (ids, times, addresses, sizes that the kernel decides)
is replaced by a word before output, error output and exit code are compared.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.live.support import COMMAND_SECONDS, LiveTestCase

SCENARIOS = Path(__file__).with_name("scenarios")

#: What differs between two runs of the same command, and what is compared instead.
VARIES = (
    (r"sha256:[0-9a-f]{64}", "IMAGE-ID"),
    (r"\b[0-9a-f]{64}\b", "ID"),
    (r"(?m)^(\w+\s+)?\d{3,}\s+(\d+\s+)?(?=\d+\s|sleep)", "PROCESS "),
    (r"\b(?=[0-9a-z]*[0-9])(?=[0-9a-z]*[a-z])[0-9a-z]{25}\b", "SWARM-ID"),
    (r"\b(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])([0-9a-f]{12}\b|[0-9a-f]{14}…)", "SHORT-ID"),
    (r"(?<=---> )\d{12}\b", "SHORT-ID"),  # some ids have no letters
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[^\s\",]*( [-+]\d{4} \w+)?", "TIME"),
    (r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC"),
    (r"\b\d\d:\d\d:\d\d\b|\b\d\d:\d\d\b", "TIME"),
    (r"\b1[0-9]{9}\b", "SECONDS"),
    (r"\b172\.\d+\.\d+\.\d+\b", "ADDRESS"),
    (r"(About )?(an?|\d+|Less than a) (second|minute)s?( ago)?", "AWHILE"),
    (r'"Pid": \d+', '"Pid": 0'),
    (r"/var/lib/docker/[^\s\"]*", "STORE"),
    (r"\b\d+(\.\d+)?(B|kB|MB|GB|KiB|MiB|GiB)\b", "SIZE"),
    (r"\b\d+(\.\d+)?%", "SHARE"),
    (r"#\d+ .*|\d+\.\d+s\b", "STEP"),
    (r"(?<=time=)\d+\.\d+ ms|= \d[\d./]* ms", "MILLISECONDS"),
)

#: Commands of whose output the lines have no order.
NO_ORDER = re.compile(r"\benv\b|ls\b|--services|port|prune|images|history")


def normal(text: str) -> str:
    """Return a command's output with what differs from run to run replaced."""
    for pattern, word in VARIES:
        text = re.sub(pattern, word, text)
    return re.sub(r"[ \t]{2,}", "  ", text)


def unordered(text: str) -> str:
    """Return JSON with its lists sorted: Go's maps leave the order of many to chance, in clients too."""
    try:
        document = json.loads(text)
    except ValueError:
        return text
    return json.dumps(_sorted(document), indent=1)


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _sorted(inner) for key, inner in sorted(value.items())}
    return sorted(map(_sorted, value), key=json.dumps) if isinstance(value, list) else value


def commands(scenario: str) -> list[str]:
    """Return the command lines of a scenario.

    A line is a docker command without ``docker``; one that begins with ``!`` is a shell command instead, in which
    ``docker`` leads to where it should. A backslash at its end continues it; ``#`` begins a comment line.
    """
    text = (SCENARIOS / f"{scenario}.txt").read_text().replace("\\\n", "")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


class CliTests(LiveTestCase):
    """Each test is one scenario. ``HERE`` in a command stands for a directory that is the same on both machines."""

    def setUp(self) -> None:
        super().setUp()
        self.here = Path(tempfile.mkdtemp(prefix="rda-cli-"))
        self.addCleanup(shutil.rmtree, self.here, ignore_errors=True)
        shutil.copytree(SCENARIOS / "here", self.here, dirs_exist_ok=True)
        self.host.run("mkdir", "-p", str(self.here))
        pack = ["tar", "-cf", "-", "-C", str(self.here), "."]
        packed = subprocess.run(pack, check=True, stdout=subprocess.PIPE).stdout
        self.host.run("tar", "-xf", "-", "-C", str(self.here), input=packed)
        self.addCleanup(self.host.run, "rm", "-rf", str(self.here))
        self.clean()

    def same(self, scenario: str) -> None:
        """Run a scenario both ways and compare what its commands said."""
        lines = commands(scenario)
        outcomes = {}
        for way, environment in self.ways().items():
            outcomes[way] = [self.outcome(line, environment) for line in lines]
            self.clean()
        found = [
            f"{line}\n  directly:    {direct}\n  through rda: {through}"
            for line, direct, through in zip(lines, outcomes["directly"], outcomes["through rda"], strict=True)
            if direct != through
        ]
        self.assertEqual(found, [], "\n".join([f" {len(found)} of {len(lines)} commands differ:", *found]))

    def outcome(self, line: str, environment: dict[str, str]) -> tuple[int, str, str]:
        """Run one line; return its exit code, output and error output as they are compared."""
        docker = shlex.quote(self.host.docker_cli)
        command = line[1:] if line.startswith("!") else f"docker {line}"
        done = subprocess.run(
            [
                "bash",
                "-c",
                f'docker() {{ {docker} "$@"; }}; export -f docker; {command}'.replace("HERE", str(self.here)),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        output = unordered(normal(done.stdout.decode(errors="replace")))
        if NO_ORDER.search(line):
            output = "\n".join(sorted(output.splitlines()))
        return done.returncode, output, normal(done.stderr.decode(errors="replace"))

    def clean(self) -> None:
        """Remove what a scenario made, past rda."""
        self._remove_containers()
        self.host.docker("swarm", "leave", "--force", check=False)
        self.host.docker("volume", "prune", "--force", "--all")
        self.host.docker("network", "prune", "--force")
        names = self.host.docker("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.decode().split()
        made = [name for name in names if name.startswith("cli-")]
        if made:
            self.host.docker("rmi", "--force", *made)
        self.host.docker("image", "prune", "--force")
        self.host.docker("builder", "prune", "--all", "--force", check=False)

    def test_life(self) -> None:
        """Create, start, stop, and everything in between, with what is wrong too."""
        self.same("life")

    def test_describing_a_container(self) -> None:
        """The whole description of a container that has a bit of everything."""
        self.same("describing_a_container")

    def test_refused_options(self) -> None:
        """What the daemon does not take is refused in the same words."""
        self.same("refused_options")

    def test_exec_attach_and_logs(self) -> None:
        """Streams of a container's output, and its input."""
        self.same("exec_attach_and_logs")

    def test_files_and_images(self) -> None:
        """cp, export, import, save, load, tag, history, commit, build and the image lists."""
        self.same("files_and_images")

    def test_volumes_networks_and_system(self) -> None:
        """The other things that a daemon keeps."""
        self.same("volumes_networks_and_system")

    def test_compose(self) -> None:
        """A Compose project that has something of everything."""
        self.same("compose")

    def test_swarm(self) -> None:
        """A swarm of one: services, tasks, secrets and configs."""
        self.same("swarm")
