# SPDX-License-Identifier: GPL-3.0-or-later
"""A pystray backend that speaks StatusNotifierItem and com.canonical.dbusmenu: no toolkit."""
