# SPDX-License-Identifier: GPL-3.0-or-later
"""The desktop client of usbipsshd: a tray icon with a menu. Importing it needs no display."""
