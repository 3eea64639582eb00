"""rda, the Remote Docker Agent: a remote Docker daemon, as if it were local.

The map::

    docker CLI ──HTTP──▶ proxy.server ─▶ proxy.relay ──▶ link.docker() ──SSH──▶ dockerd
                              │  access.gate ─▶ containers.calls ── docker.rewrite (pure: outward / inward)
                              ├─▶ ports.forwards  local listener ◀──▶ link.tcp("127.0.0.1", remote port)
                              └─▶ sync.mirror     local tree ──▶ link.files() / link.command() ──▶ remote directory

``tap`` reads the options and starts an ``agent`` with a ``context`` for each remote daemon, which only wires these
parts together. Each part receives the ones below it through the interfaces of :mod:`rda.interfaces`. What the words
mean: a *link* is the SSH connection to one remote, a *forward* is one published port, a *mirror* is one bind mount's
source, a *context* is all of that for one remote daemon.

The packages:

========== ==========================================================================================================
proxy      the Docker endpoint on this machine: listeners, who connects, HTTP, and relaying it
docker     what is known of Docker's API: routes, documents and how they are rewritten; pure
containers what a container needs here: call by call (``calls``), and in between (``reconciler``)
ports      published ports on this machine, TCP and UDP, and this machine's ports for containers
sync       bind mounts: look at both sides, plan, carry it out
ssh        the link: configuration, keys, login, transport, channels, SFTP
access     who may do what, and what was done: policy, gate, ownership, quotas, audit
pages      what people and monitoring see below ``/_rda/``
command    the ``rda`` command, which asks there
doctor     looks from outside at everything that rda needs
========== ==========================================================================================================
"""

__version__ = "0.1.0"
