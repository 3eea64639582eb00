"""What ``rda doctor`` looks at, from outside the agent: it works when no agent runs, and with one that is stuck.

::

    rda.doctor.finding   what was found, as a value: ok, or what is wrong and what to do
    rda.doctor.here      this machine: state, disk, limits, ports, the docker command
    rda.doctor.there     the remote host, over an SSH connection of the doctor's own
    rda.doctor.advice    what to do about what the link says
"""
