"""Runs the commands of a document, in order, as a reader types them.

What is run is each ``.. code-block:: console``: lines that begin with ``$ `` are commands (a backslash at the end goes
on in the next line), the lines below one are what it prints, with ``...`` for anything. A block below a comment
``.. not run: REASON`` is left out. A command that serves until it is stopped (``twistd -n``, ``make run``) goes on
until the document ends; it is waited for until it says where it listens.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Seconds that one command of a document may take.
COMMAND_SECONDS = 120.0

#: Seconds in which output that is "within a moment" has to come.
MOMENT_SECONDS = 10.0

_BLOCK = re.compile(
    r"(?P<unrun>^\.\. not run: .+\n\n)?^\.\. code-block:: console\n\n(?P<text>(?:^(?: {4}.*)?\n)+)", re.MULTILINE
)
_SERVES = ("twistd -n", "make run")
_MARK = "---- end of command, status "


@dataclass(frozen=True)
class Step:
    """A command, and what it prints: "" when the document does not say."""

    command: str
    output: str


def steps(text: str) -> Iterator[Step]:
    """Yield the commands of a document that are to be run."""
    for block in _BLOCK.finditer(text):
        if block["unrun"]:
            continue
        lines = [line[4:] for line in block["text"].rstrip().splitlines()]
        for part in re.split(r"^\$ ", "\n".join(lines), flags=re.MULTILINE)[1:]:
            command, *output = re.split(r"(?<!\\)\n", part.rstrip(), maxsplit=1)
            yield Step(command, "".join(output))


def matches(expected: str, printed: str) -> bool:
    """Tell whether a command printed what a document says, with ``...`` for anything and spaces not counted."""
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in expected.split("..."))
    return re.fullmatch(pattern.replace(r"\ .*", ".*").replace(r".*\ ", ".*"), " ".join(printed.split())) is not None


class Reader:
    """A person at a terminal, with a shell that lives as long as the document.

    :param directory: where they are.
    :param environment: what their shell begins with.
    :param here: what stands for something else here, such as ports and hosts: replaced in commands and outputs.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str], here: Mapping[str, str]) -> None:
        self._here = here
        self._serving: list[subprocess.Popen[str]] = []
        self._environment, self._directory = dict(environment), directory
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env=self._environment,
            start_new_session=True,
        )

    def follow(self, text: str) -> int:
        """Do what a document says; return the number of commands.

        :raises AssertionError: when a command fails or prints something else.
        """
        for pattern, replacement in self._here.items():
            text = re.sub(pattern, replacement, text)
        number = 0
        for step in steps(text):
            number += 1
            if step.command.startswith(_SERVES):
                self._serve(step)
            else:
                self._type(step)
        return number

    def _type(self, step: Step) -> None:
        """Run a command; when it looks at what follows "within a moment", look until it is there."""
        deadline = time.monotonic() + MOMENT_SECONDS
        while True:
            status, printed = self._run(step.command)
            if status == 0 and (not step.output or matches(step.output, printed)):
                return
            if time.monotonic() > deadline or not step.command.startswith(("curl", "docker ps", "cat")):
                raise AssertionError(
                    f"$ {step.command}\nended with {status} and printed:\n{printed}\nnot: {step.output}"
                )
            time.sleep(0.1)

    def _run(self, command: str) -> tuple[int, str]:
        stdin, stdout = self._shell.stdin, self._shell.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f'{{ {command}\n}} </dev/null; status=$?; echo; echo "{_MARK}$status"\n')
        stdin.flush()
        printed = []
        watch = subprocess.Popen(["sh", "-c", f"sleep {COMMAND_SECONDS}; kill -9 -{self._shell.pid}"])
        try:
            for line in stdout:
                if line.startswith(_MARK):
                    return int(line.removeprefix(_MARK)), "".join(printed).rstrip()
                printed.append(line)
        finally:
            watch.kill()
            watch.wait()
        raise AssertionError(f"$ {command}\ndid not end:\n{''.join(printed)}")

    def _serve(self, step: Step) -> None:
        """Start what serves, in the state that the shell is in, and wait until it says what the document says."""
        _, directory = self._run("pwd")
        process = subprocess.Popen(
            ["bash", "-c", f"exec {step.command}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env=self._environment,
            start_new_session=True,
        )
        self._serving.append(process)
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "export DOCKER_HOST=" in line:
                return
        raise AssertionError(f"$ {step.command}\nended and printed:\n{''.join(printed)}")

    def leave(self) -> None:
        """End the shell and what still serves."""
        for process in [*self._serving, self._shell]:
            try:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(20)
            except ProcessLookupError:
                pass
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
