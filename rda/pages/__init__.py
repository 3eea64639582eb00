"""What rda serves below ``/_rda/``, for people, for the ``rda`` command and for monitoring.

::

    /_rda/            the status page: one HTML file, its style and its script
    /_rda/status      what rda is doing, as JSON            (rda.pages.document; docs/status-schema.rst)
    /_rda/events      the same whenever it changes          (rda.pages.live: server-sent events)
    /_rda/logs        the last lines of the log, and those that follow
    /_rda/metrics     numbers for Prometheus                (rda.pages.metrics)
    /_rda/flush …     what people tell it to do: POST only  (rda.pages.control)

Who may ask is decided before: by the listener (:mod:`rda.proxy.guard`), for these as for Docker's own calls. A page in
a browser may only read, and only if it is rda's own.
"""
