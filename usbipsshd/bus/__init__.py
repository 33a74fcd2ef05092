# SPDX-License-Identifier: GPL-3.0-or-later
"""What D-Bus sees of the daemon, and the one place that knows dbus-next."""
