"""Tests against a real sshd and a real dockerd, with real clients."""
