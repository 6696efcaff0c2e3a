"""An error that both sides know, each by its own registry."""

from __future__ import annotations

__all__ = ["PlaneNotFound"]


class PlaneNotFound(Exception):
    """No plane of this tail number."""
