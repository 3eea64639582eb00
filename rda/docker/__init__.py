"""What rda knows of the Docker Engine API. Pure: no I/O."""
