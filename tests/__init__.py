"""The tests of rda: unit tests mirror the modules; tests.live needs a real remote host.

What hypothesis makes up is the same in each run, so that a change is judged by what it changes; the soak tests, and any
run with ``RDA_RANDOM=1``, look for news.
"""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("news", deadline=None)
settings.load_profile("news" if os.environ.get("RDA_RANDOM") else "same")
