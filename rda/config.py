"""Options and TOML, checked, as one frozen :class:`Config`. Pure: reads no file and no environment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remote:
    """The remote host and how to get in, as the user said it (ssh_config has not been looked at yet).

    :ivar target: what ssh(1) accepts: an alias, ``host``, ``user@host``, ``user@host:port`` or ``ssh://…``.
    :ivar identities: private key files to use; none means ssh's own defaults.
    :ivar known_hosts: known_hosts files to use; none means ssh's own defaults.
    :ivar host_keys: pinned fingerprints, ``SHA256:…``; when given, nothing else is trusted.
    :ivar accept_new: trust and remember the key of a host that no known_hosts file knows.
    :ivar ssh_config: path of the ssh_config file to use, "" for ssh's own defaults, "none" for no file.
    :ivar compression: ask for ``zlib@openssh.com``.
    """

    target: str
    identities: tuple[str, ...] = ()
    known_hosts: tuple[str, ...] = ()
    host_keys: tuple[str, ...] = ()
    accept_new: bool = False
    ssh_config: str = ""
    compression: bool = False


@dataclass(frozen=True)
class Context:
    """One remote Docker daemon and how it appears here.

    :ivar listen: Twisted server endpoint strings.
    :ivar docker: the daemon on the remote: ``unix:///path`` or ``tcp://host:port``.
    :ivar sync_root: directory on the remote for mirrored trees; relative means below the login directory.
    :ivar publish_address: local addresses that an empty HostIp means.
    """

    name: str
    remote: Remote
    listen: tuple[str, ...] = ("tcp:23750:interface=127.0.0.1",)
    docker: str = "unix:///var/run/docker.sock"
    sync_root: str = ".rda"
    publish_address: tuple[str, ...] = ("127.0.0.1", "::1")


@dataclass(frozen=True)
class Config:
    """Everything the agent needs to know.

    :ivar state_dir: local directory, owner-only, for identity and manifests.
    """

    contexts: tuple[Context, ...]
    state_dir: str
    log_level: str = "info"
