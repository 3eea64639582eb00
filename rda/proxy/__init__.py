"""The HTTP side: reads each request's head, decides once what happens to it, and carries it out."""
