"""``python -m rda.command``."""

from __future__ import annotations

import sys

from rda.command import main

sys.exit(main())
