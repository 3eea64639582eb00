"""Bind mounts: a local tree kept complete and live on the remote host."""
