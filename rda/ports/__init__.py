"""Ports: those that containers publish, opened on this machine, and those of this machine that containers reach."""
