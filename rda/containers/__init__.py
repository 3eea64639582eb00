"""What a container needs of this machine, its ports and its directories: call by call, and in between."""
