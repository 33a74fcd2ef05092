# SPDX-License-Identifier: GPL-3.0-or-later
"""The session process: what talks to the network, without privileges."""
