"""The docker command of this machine: where it keeps its configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["configuration_directory"]


def configuration_directory(environ: Mapping[str, str]) -> Path:
    """Return the directory of ``config.json``, of contexts and of plugins.

    Source: https://docs.docker.com/reference/cli/docker/#change-the-docker-directory.
    """
    return Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME") or os.path.expanduser("~")) / ".docker")
