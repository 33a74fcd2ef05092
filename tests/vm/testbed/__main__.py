# SPDX-License-Identifier: GPL-3.0-or-later
"""`python3 -m testbed`."""

import sys

from .cli import main

sys.exit(main())
