"""Docker's own contexts, as the docker command keeps them: read from its files, written by it or, without it, likewise.

A context is ``contexts/meta/ID/meta.json`` below the docker command's configuration directory, its certificates are in
``contexts/tls/ID/docker/``, and ID is the SHA-256 of its name. Ours are known by their description.

Source: https://docs.docker.com/engine/manage-resources/contexts/; cli/context/store in docker/cli.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rda.command.base import CommandError
from rda.docker_cli import configuration_directory

__all__ = ["CERTIFICATES", "DockerContext", "DockerContexts"]

#: What the description of a context of ours begins with.
MARK = "rda: "

#: The files of a client's TLS directory, in Docker's layout.
CERTIFICATES = ("ca.pem", "cert.pem", "key.pem")

#: Seconds for the docker command, which only writes files.
DOCKER_SECONDS = 30

#: The store's own rule for names; ``default`` stands for no context.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.+-]+\Z")


@dataclass(frozen=True)
class DockerContext:
    """One of Docker's contexts.

    :ivar host: as in DOCKER_HOST.
    :ivar ours: ``rda context install`` made it.
    """

    name: str
    host: str
    description: str = ""

    @property
    def ours(self) -> bool:
        """Whether we made it."""
        return self.description.startswith(MARK)


class DockerContexts:
    """All of them.

    :param environ: of the process: says where the docker command and its configuration are.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.directory = configuration_directory(environ)
        self._docker = shutil.which("docker", path=environ.get("PATH"))

    def all(self) -> list[DockerContext]:
        """Every context whose file can be read, by name."""
        found = [self._read(path) for path in self._meta().glob("*/meta.json")]
        return sorted((context for context in found if context is not None), key=lambda context: context.name)

    def find(self, name: str) -> DockerContext | None:
        """One of them."""
        return self._read(self._meta() / _id(name) / "meta.json")

    def current(self) -> str:
        """The name of the one in use, "" when that is none."""
        try:
            found = json.loads((self.directory / "config.json").read_text(encoding="utf-8")).get("currentContext")
        except (OSError, ValueError, AttributeError):
            return ""
        return found if isinstance(found, str) and found != "default" else ""

    def install(self, name: str, host: str, what: str, certificates: Path | None) -> None:
        """Make a context, or change one of ours.

        :param what: what it leads to, for its description.
        :param certificates: directory with the files of :data:`CERTIFICATES`, for TLS.
        :raises CommandError: it cannot be.
        """
        if not _NAME.match(name) or name == "default":
            raise CommandError(f"{name!r} cannot be the name of a Docker context; say another: rda context install rda")
        existing = self.find(name)
        if existing is not None and not existing.ours:
            raise CommandError(
                f"the Docker context {name!r} is there already and not rda's ({existing.host}); choose another name"
            )
        missing = [one for one in CERTIFICATES if certificates is not None and not (certificates / one).is_file()]
        if missing:
            raise CommandError(f"{certificates} has no {', '.join(missing)}")
        if self._docker is None:
            self._write(DockerContext(name, host, MARK + what), certificates)
            return
        endpoint = f"host={host}"
        if certificates is not None:
            endpoint += "".join(f",{one.removesuffix('.pem')}={certificates / one}" for one in CERTIFICATES)
        verb = "create" if existing is None else "update"
        self._run("context", verb, name, "--description", MARK + what, "--docker", endpoint)

    def remove(self, name: str) -> None:
        """Remove a context of ours that is not in use.

        :raises CommandError: there is none, or it is.
        """
        existing = self.find(name)
        if existing is None:
            raise CommandError(f"there is no Docker context {name!r}; 'rda context list' shows those there are")
        if not existing.ours:
            raise CommandError(f"the Docker context {name!r} is not rda's ({existing.host}): docker context rm {name}")
        if self.current() == name:
            raise CommandError(f"the Docker context {name!r} is in use; first: docker context use default")
        if self._docker is not None:
            self._run("context", "rm", name)
            return
        for part in ("meta", "tls"):
            shutil.rmtree(self.directory / "contexts" / part / _id(name), ignore_errors=True)

    # ----------------------------------------------------------------------------------------------------------- files

    def _meta(self) -> Path:
        return self.directory / "contexts" / "meta"

    def _read(self, path: Path) -> DockerContext | None:
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
            endpoint = (found.get("Endpoints") or {}).get("docker") or {}
            description = (found.get("Metadata") or {}).get("Description") or ""
            return DockerContext(str(found["Name"]), str(endpoint.get("Host", "")), str(description))
        except (OSError, ValueError, KeyError, AttributeError):
            return None

    def _write(self, context: DockerContext, certificates: Path | None) -> None:
        """Write what the docker command would."""
        document = {
            "Name": context.name,
            "Metadata": {"Description": context.description},
            "Endpoints": {"docker": {"Host": context.host, "SkipTLSVerify": False}},
        }
        tls = self.directory / "contexts" / "tls" / _id(context.name)
        meta = self._meta() / _id(context.name)
        try:
            shutil.rmtree(tls, ignore_errors=True)
            if certificates is not None:
                (tls / "docker").mkdir(mode=0o700, parents=True)
                for one in CERTIFICATES:
                    _write_private(tls / "docker" / one, (certificates / one).read_bytes())
            meta.mkdir(mode=0o755, parents=True, exist_ok=True)
            new = meta / "meta.json.new"
            new.write_text(json.dumps(document), encoding="utf-8")
            new.replace(meta / "meta.json")
        except OSError as e:
            raise CommandError(f"cannot write the Docker context: {e.filename}: {e.strerror}") from e

    def _run(self, *words: str) -> None:
        assert self._docker is not None
        kept = {name: value for name, value in self._environ.items() if name not in ("DOCKER_HOST", "DOCKER_CONTEXT")}
        try:
            done = subprocess.run(
                [self._docker, *words], env=kept, capture_output=True, text=True, timeout=DOCKER_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise CommandError(f"cannot run {self._docker}: {e}") from e
        if done.returncode != 0:
            raise CommandError(f"docker {' '.join(words[:3])} failed: {done.stderr.strip() or done.returncode}")


def _id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
