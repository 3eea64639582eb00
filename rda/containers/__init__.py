"""What a container needs of this machine, its ports and its directories: call by call, and in between.

::

    calls          what happens to clients' calls about containers, before the daemon sees them and after
    reconciler     what is open and mirrored here, kept equal to what the daemon says is there
    waiting        calls that wait for a mount to be complete, told to people
    made_here      the record of the containers that count as ours: labels can be copied
"""
