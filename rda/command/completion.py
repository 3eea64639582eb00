"""``rda completion``: what the shell needs to complete the command line with the Tab key."""

from __future__ import annotations

import argparse

from rda.command.base import Command, Exit
from rda.command.terminal import Terminal

__all__ = ["COMMAND"]

SHELLS = ("bash", "zsh", "fish", "tcsh")

#: Arguments that are completed with what is on the disk.
FILES = ("path", "file", "config", "identity", "known_hosts", "ssh_config")
DIRECTORIES = ("state_dir", "tls")


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    import shtab

    from rda.command import make_parser

    parser = make_parser()
    for action in _all_actions(parser):
        if action.dest in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # read by shtab
        elif action.dest in DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    terminal.print(shtab.complete(parser, shell=options.shell))
    return Exit.OK


def _all_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found: list[argparse.Action] = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for own in set(action.choices.values()):
                found += _all_actions(own)
    return found


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell that it is for")
    parser.epilog = "For bash: rda completion bash > ~/.local/share/bash-completion/completions/rda"


COMMAND = Command("completion", "print what completes this command's words with the Tab key", _run, _configure)
