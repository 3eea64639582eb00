"""What rda knows of the Docker Engine API. Pure: no I/O.

::

    routes         what happens to each endpoint's calls; endpoints: the whole API, where calls are judged
    document       JSON as the daemon reads it; schemas: the keys of its documents
    rewrite        documents outward and inward, side by side; listing: filters of lists
    request        what the user asked for, as a label keeps it; labels: rda's own labels in clients' documents
    binds          bind sources as they are written, and rules on them; sources: whose path each one is
    ports          published ports; host_network: those of containers that publish none
    claims         what a request reaches for, to be judged; images: names and patterns; owned: whose things are;
                   passing: what of a judged call goes on
"""
