"""The SSH side: one verified, reconnecting link per remote, and channels that behave like transports."""
