"""Makes ``twistd rda`` known to Twisted; everything else is in :mod:`rda.tap`."""

from twisted.application.service import ServiceMaker

rda = ServiceMaker("rda", "rda.tap", "Remote Docker Agent: a remote Docker daemon, as if it were local.", "rda")
