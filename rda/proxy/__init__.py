"""The Docker endpoint of this machine: reads each request's head, decides once what happens to it, and carries it out.

From the client to the daemon::

    listeners        where clients connect; adopted: sockets that the service manager made
    certificates     what TLS listeners present and ask for; tls: half-closed TLS connections
    authentication   who connects: by the kernel, a certificate or a token
    server           the site: takes connections, admits requests; guard: refuses those of web pages
    channel          one client connection, as HTTP/1.1; request: one request
    relay            one exchange: the request on its way out, the answer on its way back; tunnel: a hijacked one
    pool             connections to the daemon
    wire             HTTP messages as bytes; pure, like guard and counters
    calls, counters  what has been done, for the status
"""
