"""The same figures by another way: a batch query over the raw rows, compared with what the pipeline counted.

Nothing of the pipeline is used here: not its time rules (hours are the data's own `time_hour` column), not its joins, not its
statistics. SQLite does it all, from the tables as they stand.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.flights.dataset import Row, Tables

__all__ = ["Batch", "Comparison", "compare"]

_FLIGHTS = """
CREATE TABLE f AS
SELECT printf('%04d-%02d-%02d-%s-%s-%s', r.year, month, day, r.carrier, flight, r.origin) AS flight_id,
       printf('%04d-%02d-%02d', r.year, month, day) AS date,
       r.time_hour AS hour, r.origin, r.carrier, r.dest,
       NULLIF(r.tailnum, '') AS tail,
       CAST(sched_dep_time AS INTEGER) AS sched,
       CAST(NULLIF(dep_delay, '') AS INTEGER) AS dep,
       CAST(NULLIF(arr_delay, '') AS INTEGER) AS arr,
       CAST(p.seats AS INTEGER) AS seats,
       CASE WHEN NULLIF(w.visib, '') IS NULL THEN 'not observed'
            WHEN CAST(w.visib AS REAL) < 1 THEN 'under 1 mile'
            WHEN CAST(w.visib AS REAL) < 3 THEN '1 to 3 miles'
            WHEN CAST(w.visib AS REAL) < 10 THEN '3 to 10 miles'
            ELSE '10 miles' END AS visibility
FROM flights r
LEFT JOIN planes p ON p.tailnum = r.tailnum
LEFT JOIN weather w ON w.origin = r.origin AND w.time_hour = r.time_hour
"""

_FIGURES = """
       COUNT(*) AS scheduled,
       COUNT(dep) AS departed,
       SUM(dep IS NULL) AS cancelled,
       COUNT(arr) AS arrived,
       COALESCE(SUM(CASE WHEN dep IS NULL THEN seats END), 0) AS seats_cancelled,
       AVG(dep) AS dep_delay_mean, MAX(dep) AS dep_delay_max,
       COALESCE(SUM(dep > 15), 0) AS dep_late, AVG(dep > 15) AS dep_late_share,
       AVG(arr) AS arr_delay_mean, MAX(arr) AS arr_delay_max,
       COALESCE(SUM(arr > 15), 0) AS arr_late, AVG(arr > 15) AS arr_late_share
"""

_WORST = "SELECT flight_id, dep AS dep_delay, arr AS arr_delay FROM f WHERE dep IS NOT NULL ORDER BY dep DESC, flight_id LIMIT ?"

_LEGS = """
SELECT flight_id, date, origin, dest, carrier, tail AS tail_number, dep AS dep_delay, arr AS arr_delay, dep IS NULL AS cancelled,
       SUM(COALESCE(dep, 0)) OVER (
           PARTITION BY tail, date ORDER BY sched, flight_id ROWS UNBOUNDED PRECEDING
       ) AS running_delay
FROM f WHERE tail IS NOT NULL ORDER BY tail, date, sched, flight_id
"""


_VERY_LATE = """
SELECT origin, CAST(strftime('%s', hour) AS INTEGER) + 60 * (sched % 100 + dep) AS left_at
FROM f WHERE dep > 60 ORDER BY origin, left_at
"""


class Batch:
    """The tables in an SQLite database in memory, and the figures asked of it."""

    def __init__(self, tables: Tables) -> None:
        self._db = sqlite3.connect(":memory:")
        self._db.row_factory = sqlite3.Row
        for name, rows in zip(
            ("flights", "planes", "weather"),
            (tables.flights, tables.planes, tables.weather),
            strict=True,
        ):
            self._load(name, rows)
        self._db.execute("CREATE INDEX planes_tail ON planes (tailnum)")
        self._db.execute("CREATE INDEX weather_hour ON weather (origin, time_hour)")
        self._db.execute(_FLIGHTS)

    def close(self) -> None:
        """Gives the memory back."""
        self._db.close()

    def events(self) -> int:
        """How many events the rows are: each flight is scheduled and departs or is cancelled, and most arrive."""
        return int(self._one("SELECT 2 * COUNT(*) + COUNT(arr) AS n FROM f")["n"])

    def total(self) -> dict[str, Any]:
        """The figures over all flights."""
        return self._one(f"SELECT {_FIGURES} FROM f")

    def by(self, *columns: str) -> list[dict[str, Any]]:
        """The figures for each value of `columns`: of `hour`, `origin`, `carrier`, `visibility`."""
        names = ", ".join(columns)
        return self._all(f"SELECT {names}, {_FIGURES} FROM f GROUP BY {names} ORDER BY {names}")

    def worst(self, n: int) -> list[dict[str, Any]]:
        """The `n` longest departure delays."""
        return self._all(_WORST, n)

    def alerts(self) -> dict[str, int]:
        """For each airport, how often two of its flights left over an hour late within three hours; a flight counts for one of them."""
        found: dict[str, int] = {}
        origin, begun = "", None
        for row in self._all(_VERY_LATE):
            if row["origin"] != origin:
                origin, begun = row["origin"], None
            if begun is not None and row["left_at"] - begun <= 3 * 3600:
                found[origin], begun = found.get(origin, 0) + 1, None
            else:
                begun = row["left_at"]
        return found

    def legs(self) -> list[dict[str, Any]]:
        """Every aircraft's legs with its running delay."""
        return self._all(_LEGS)

    def _load(self, name: str, rows: list[Row]) -> None:
        columns = list(rows[0])
        self._db.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
        marks = ", ".join("?" * len(columns))
        self._db.executemany(
            f"INSERT INTO {name} VALUES ({marks})", ([row[c] for c in columns] for row in rows)
        )

    def _all(self, sql: str, *values: object) -> list[dict[str, Any]]:
        return [dict(row) for row in self._db.execute(sql, values)]

    def _one(self, sql: str) -> dict[str, Any]:
        return self._all(sql)[0]


@dataclass(slots=True)
class Comparison:
    """How many figures were compared, and each difference in words."""

    figures: int = 0
    differences: list[str] = field(default_factory=list)

    def rows(
        self, what: str, expected: list[dict[str, Any]], actual: Sequence[Mapping[str, Any]]
    ) -> None:
        """Compares two lists of rows, row by row, in every column of `expected`."""
        self.value(f"{what}: rows", len(expected), len(actual))
        for want, got in zip(expected, actual, strict=False):
            name = f"{what} {'/'.join(str(v) for v in want.values() if isinstance(v, str))}"
            self.row(name, want, got)

    def row(self, what: str, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
        """Compares one row in every column of `expected`."""
        for column, value in expected.items():
            self.value(f"{what}: {column}", value, actual.get(column, "missing"))

    def value(self, what: str, expected: object, actual: object) -> None:
        """Compares one figure, or a label, which is not counted. Exactly: both sides divide the same whole numbers."""
        self.figures += not isinstance(expected, str)
        if expected != actual:
            self.differences.append(f"{what}: {actual!r}, the batch query says {expected!r}")


def _named(groups: Mapping[str, Mapping[str, Any]], column: str) -> list[Mapping[str, Any]]:
    return [{column: key, **figures} for key, figures in groups.items()]


def compare(
    batch: Batch,
    changes: Mapping[str, Any],
    hourly: Iterable[Mapping[str, Any]],
    legs: Iterable[Mapping[str, Any]],
    worst: Sequence[Mapping[str, Any]],
) -> Comparison:
    """Compares every figure of the pipeline with the batch query's.

    Args:
        batch: the query side.
        changes: what `delays.changes(0)` returns.
        hourly: all rows by hour, origin and carrier, in this order.
        legs: all legs of all aircraft, by tail number.
        worst: what `delays.worst(n)` returns; as many are compared.
    """
    result = Comparison()
    result.value("events counted", batch.events(), changes["counted"])
    result.row("total", batch.total(), changes["total"])
    for column, key in (
        ("carrier", "carriers"),
        ("origin", "origins"),
        ("visibility", "visibility"),
        ("hour", "hours"),
    ):
        result.rows(f"by {column}", batch.by(column), _named(changes[key], column))
    result.rows("hourly", batch.by("hour", "origin", "carrier"), list(_plain(hourly)))
    result.rows("aircraft", batch.legs(), list(_plain(legs)))
    result.rows("worst", batch.worst(len(worst)), worst)
    return result


def _plain(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (dict(row) for row in rows)
