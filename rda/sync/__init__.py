"""Bind mounts: a local tree kept complete and live on the remote host.

From the top to the bottom::

    mirrors        what containers and people ask for; copies: those on the remote that nobody uses any more
    placing        where each source is there: in a copy of its own, or (nested, joined) in that of a directory above;
                   uses: who uses what
    pool           the mirrors that there are, by source; marks: what is known of them here; sync_root: their places
    mirror         one of them: when to look (schedule), who waits, what the status tells (problems, progress)
    reconcile      one pass: from what a look found to both sides (sides) of carrying it out
    plan, both     what has to be done, one way and two ways, and what looks like an accident; pure, like tree
    scan           looks at the local tree, with its ignore rules; inside: without following anybody's links out of it
    remote_look    looks at the remote one; racy: what the times that are told there do not show
    watch          hears of changes here (local_watch: for one mirror), remote_watch: there
    apply          carries a plan out on the remote, path by path: over SFTP, or with
    stage, bulk    many small files at once, as one tar stream, and large: big files block by block
    publish        gives names on the remote, never over something of somebody else's; record: what became of each path
    pull           carries out here what comes back
    manifest       what rda has put on the remote, crash-safe
    session        the remote tree over one connection; remote: its directories; owner: whose the files are
    content        reads local files, each as one version; tar: headers
"""
