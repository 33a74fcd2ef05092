# SPDX-License-Identifier: GPL-3.0-or-later
"""``usbipsshctl``: the command line. It does nothing that busctl could not do."""
