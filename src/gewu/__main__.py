"""`python -m gewu` is the command `gewu`."""

from __future__ import annotations

import sys

from gewu.cli import main

sys.exit(main())
