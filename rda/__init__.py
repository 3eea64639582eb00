"""rda, the Remote Docker Agent: a remote Docker daemon, as if it were local.

The map::

    docker CLI ──HTTP──▶ proxy.server ─▶ proxy.relay ──▶ link.docker() ──SSH──▶ dockerd
                              │  containers ── docker.rewrite (pure: outward / inward)
                              ├─▶ forwards     local listener ◀──▶ link.tcp("127.0.0.1", remote port)
                              └─▶ sync.mirror  local tree ──▶ link.files() / link.command() ──▶ remote directory

``tap`` reads the options and starts an ``agent`` with a ``context`` for each remote daemon, which only wires these
parts together. Each part receives the ones below it through the interfaces of :mod:`rda.interfaces`. What the words
mean: a *link* is the SSH connection to one remote, a *forward* is one published port, a *mirror* is one bind mount's
source, a *context* is all of that for one remote daemon.

Beside all that, ``pages`` is what people and monitoring see of it below ``/_rda/``, ``command`` is the ``rda`` command
that asks there, and ``doctor`` looks from outside at everything that rda needs.
"""

__version__ = "0.1.0"
