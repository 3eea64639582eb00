"""``docker rda …``: the same command as a plugin of the docker command.

The docker command looks for programs named ``docker-NAME`` in its directories of plugins, asks each for its metadata,
and runs it with its own command line: global options, ``NAME``, and what follows.

Source: https://docs.docker.com/engine/extend/cli_plugins/ and cli-plugins/metadata in docker/cli.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rda import __version__
from rda.command.base import Command, CommandError, Exit
from rda.command.terminal import Terminal
from rda.docker_cli import configuration_directory

__all__ = ["COMMAND", "METADATA", "plugin_main"]

#: What the docker command asks a plugin for.
HANDSHAKE = "docker-cli-plugin-metadata"

METADATA = {
    "SchemaVersion": "0.1.0",
    "Vendor": "rda",
    "Version": __version__,
    "ShortDescription": "Remote Docker Agent: ports and bind mounts of a remote daemon as if it were local",
}

#: The docker command's global options that have a value.
_WITH_VALUE = ("--config", "--log-level", "--tlscacert", "--tlscert", "--tlskey", "-l")
_HOST, _CONTEXT = ("--host", "-H"), ("--context", "-c")


def plugin_main() -> int:
    """Be ``docker-rda``: answer the docker command's question, or run the command."""
    words = sys.argv[1:]
    if words[:1] == [HANDSHAKE]:
        print(json.dumps(METADATA))
        return Exit.OK
    from rda.command import main

    return main(own_words(words), prog="docker rda")


def own_words(words: Sequence[str]) -> list[str]:
    """What is left for ``rda`` of the docker command's words: its ``--host``, and what follows its own name.

    A docker context is the docker command's business: which endpoint it stands for, it does not tell plugins.
    """
    found: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "rda":
            return found + rest
        if name in _HOST or name in _CONTEXT or name in _WITH_VALUE:
            value = value if equals else (rest.pop(0) if rest else "")
            found += ["--host", value] if name in _HOST else []
        elif not word.startswith("-"):
            return [*found, word, *rest]  # run by hand, as docker-rda status
    return found


def _directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the docker command looks for the user's plugins."""
    return configuration_directory(environ) / "cli-plugins"


def _program() -> Path:
    """The installed ``docker-rda``: beside the running command, or on PATH."""
    beside = Path(sys.argv[0]).absolute().with_name("docker-rda")
    found = str(beside) if beside.exists() else shutil.which("docker-rda")
    if found is None:
        raise CommandError(
            "docker-rda is installed neither beside this command nor on PATH; install rda again, in a clone of its "
            "repository: pipx install --force --include-deps ."
        )
    return Path(found)


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    link = _directory() / "docker-rda"
    if options.do == "remove":
        if link.is_symlink():
            link.unlink()
            terminal.print(f"removed {link}")
        elif link.exists():
            raise CommandError(f"{link} is not a link, so rda has not put it there; remove it by hand")
        else:
            terminal.print("docker rda is not installed")
        return Exit.OK
    program = _program()
    if link.exists() and not link.is_symlink():
        raise CommandError(f"{link} is in the way and not a link; remove it by hand")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(program)
    except OSError as error:
        raise CommandError(f"{link} cannot be made: {error.strerror}; link it by hand to {program}") from error
    terminal.print(f"{link} -> {program}", "Try it: docker rda status")
    return Exit.OK


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "do", choices=("install", "remove"), help="make the link in ~/.docker/cli-plugins, or remove it"
    )


COMMAND = Command("plugin", "make this command available as: docker rda", _run, _configure)
