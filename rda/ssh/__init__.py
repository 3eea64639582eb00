"""The SSH link to a remote host: nothing outside this package but :mod:`rda.context` and :mod:`rda.agent` import it.

From the top to the bottom::

    shared           one link for all contexts of the same remote
    link             what the rest of rda sees (rda.interfaces.IRemoteHost): lines, pools and spares put together
    docker_socket    which way leads to the Docker socket, and channels that are open before they are needed
    sessions         commands and subsystems within the server's MaxSessions
    line             one SSH connection that always comes back: retries, whoever waits for it; keepalive watches it
    connect          opening one connection: TCP, jump hosts, a proxy command (proxy_command)
    ssh_config       what --remote means: by ssh -G, or without it by ssh_config_file; the result is a target
    login            who we are: user authentication; identities and agent have the keys, askpass the passphrases
    host_keys        who they are: host keys, by known_hosts and pins
    transport        the encrypted connection, with exchange and kex; below it packet_transport, packets and ciphers
    channels         the connection service and its channels as endpoints; opening: how one begins, stream: what it
                     is as a transport, command_channel: a command's
    sftp             the remote file system; sftp_wire: its messages
    keys             public keys and certificates as values; known_hosts: looking them up; private_keys: their files
    network_watch    noticing that the network has changed; program: running a local program; observers: who is told
"""
