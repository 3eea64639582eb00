"""``rda token``: make a bearer token for a user. The agent keeps only its hash."""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets

from rda.access.admission import TOKEN_PREFIX, is_user_name
from rda.command.base import Command, CommandError, Exit
from rda.command.terminal import Terminal

__all__ = ["COMMAND"]

#: Random bytes of a token: as many as of a strong key, so that its hash tells nothing and needs no salt.
TOKEN_BYTES = 32


def _run(options: argparse.Namespace, terminal: Terminal) -> int:
    if not is_user_name(options.user):
        raise CommandError(f"{options.user!r} cannot be a user's name: letters, digits, '_', '.', '@', '+' and '-'")
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    digest = f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"
    headers = {"HttpHeaders": {"Authorization": f"Bearer {token}"}}
    if options.json:
        terminal.print(json.dumps({"user": options.user, "token": token, "hash": digest}))
        return Exit.OK
    terminal.print(
        "# Into the agent's rda.toml, then reload it:",
        "[tokens]",
        f"{json.dumps(options.user)} = {json.dumps(digest)}",
        "",
        f"# Into ~/.docker/config.json of {options.user}, and nowhere else; it cannot be shown again:",
        json.dumps(headers),
    )
    return Exit.OK


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", metavar="USER", help="who is let in with it")
    parser.add_argument("--json", action="store_true", help="token and hash as JSON")


COMMAND = Command("token", "make a token that lets a user in", _run, _configure)
