"""What runs on the board: `edgekit-device.pyz` in every bundle.

Standard library only, Python 3.8 or newer, and nothing of the rest of edgekit: the folder is packed
as it is into a zip that `python3` runs (edgekit.board.program), so that a bundle on a USB stick can be
built, checked and measured with one command and no installation. Runtimes are driven where they are
there. The commands, their options and their answers are in docs/device.md.
"""

from __future__ import annotations

FORMAT = "edgekit-device"
"""`format` of every answer."""

SCHEMA = 1
"""`schema` of every answer. Keys may be added under one number; a changed meaning takes the next."""

VERSION = "0.1.0"
"""The edgekit that this program belongs to."""
