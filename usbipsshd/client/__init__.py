# SPDX-License-Identifier: GPL-3.0-or-later
"""A thin client of the daemon's D-Bus interface, for the command line and the tray."""
