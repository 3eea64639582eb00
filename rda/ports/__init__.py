"""Ports: those that containers publish, opened on this machine, and those of this machine that containers reach.

::

    forwards       the table of published ports: what is open here, for whom, and where it leads
    tcp, udp       one published port; splice: one connection of it, joined to a channel of the link
    exposed        ports of this machine, open on the remote host for containers
    programs       the programs that relay on the remote host, as text: nothing is installed there
"""
