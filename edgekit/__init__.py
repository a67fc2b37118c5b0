"""edgekit: from a compressed vision checkpoint to a verified, measured INT8 bundle for an edge board."""

from __future__ import annotations

__version__ = "0.1.0"
