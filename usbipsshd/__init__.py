# SPDX-License-Identifier: GPL-3.0-or-later
"""USB devices of other machines, over nothing but ssh."""

__version__ = "0.1.0"
