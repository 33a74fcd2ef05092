# SPDX-License-Identifier: GPL-3.0-or-later
"""Two virtual machines with Debian's kernel: `pi` exports USB devices, `desk` imports them.

`images` builds what they boot from (once, cached), `machines` starts them and knows what can be
done with them, `cli` is the same for people. Only the standard library is used here.
"""
