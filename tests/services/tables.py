"""The vendored flights, read once for all tests of a process: 0.3 s."""

from __future__ import annotations

from services.flights.dataset import read_slice

__all__ = ["EIGHTH", "FORTNIGHT", "NINTH_TOO"]

FORTNIGHT = read_slice()

EIGHTH = FORTNIGHT._replace(flights=[row for row in FORTNIGHT.flights if row["day"] == "8"])
"""The blizzard's first day."""

NINTH_TOO = FORTNIGHT._replace(
    flights=[row for row in FORTNIGHT.flights if row["day"] in ("8", "9")]
)
"""The blizzard's first two days."""
