"""The registry: what is known of planes, airports, carriers and the weather.

nameko run --config services/config.yaml services.flights.registry
n.rpc.registry.plane("N14228")    # in nameko shell
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from mycelia import SharedDependency, rpc
from mycelia.runtime import Container
from services.flights.dataset import Tables, load
from services.flights.messages import Airport, Plane, Weather
from services.flights.records import PLANES, PlaneRow, plane_row

__all__ = ["Records", "Registry", "airports_of", "carriers_of", "planes_of", "weather_of"]

T = TypeVar("T")


def planes_of(tables: Tables) -> dict[str, Plane]:
    """The aircraft, by tail number."""
    return {
        row["tailnum"]: Plane(
            tail_number=row["tailnum"],
            year=int(row["year"]) if row["year"] else None,
            type=row["type"],
            manufacturer=row["manufacturer"],
            model=row["model"],
            engines=int(row["engines"]),
            seats=int(row["seats"]),
        )
        for row in tables.planes
    }


def airports_of(tables: Tables) -> dict[str, Airport]:
    """The airports, by FAA code."""
    return {
        row["faa"]: Airport(
            code=row["faa"],
            name=row["name"],
            lat=float(row["lat"]),
            lon=float(row["lon"]),
            zone=row["tzone"],
        )
        for row in tables.airports
    }


def carriers_of(tables: Tables) -> dict[str, str]:
    """The carriers' names, by code."""
    return {row["carrier"]: row["name"] for row in tables.airlines}


def weather_of(tables: Tables) -> dict[tuple[str, str], Weather]:
    """The observations, by airport and hour (UTC, `2013-02-08T22:00:00Z`)."""
    return {
        (row["origin"], row["time_hour"]): Weather(
            temperature_f=_measured(row["temp"]),
            wind_mph=_measured(row["wind_speed"]),
            precipitation_in=_measured(row["precip"]),
            visibility_mi=_measured(row["visib"]),
        )
        for row in tables.weather
    }


def _measured(text: str) -> float | None:
    return round(float(text), 2) if text else None


class Records(SharedDependency):
    """The tables in memory, read once and shared by all workers."""

    container: Container

    planes: Mapping[str, Plane] = {}
    airports: Mapping[str, Airport] = {}
    carriers: Mapping[str, str] = {}
    weather: Mapping[tuple[str, str], Weather] = {}
    rows: Sequence[PlaneRow] = ()

    async def setup(self) -> None:
        """Reads the tables before the first call arrives."""
        tables = await asyncio.to_thread(load)
        self.planes = planes_of(tables)
        self.airports = airports_of(tables)
        self.carriers = carriers_of(tables)
        self.weather = weather_of(tables)
        self.rows = [plane_row(row) for row in tables.planes]

    async def has_published(self) -> bool:
        """Whether the log of planes has something."""
        async with PLANES.reader(self.container.host.link, 0, "first") as reader:
            return await reader.take(timeout=1) is not None


class Registry:
    """Answers for one key, or for many at once; `None` says that the key is not known."""

    name = "registry"
    records = Records()
    log_of_planes = PLANES

    @rpc
    async def plane(self, tail_number: str) -> Plane | None:
        """The aircraft with this tail number."""
        return self.records.planes.get(tail_number)

    @rpc
    async def planes(self, tail_numbers: list[str]) -> dict[str, Plane | None]:
        """The aircraft with these tail numbers."""
        return _pick(self.records.planes, tail_numbers)

    @rpc
    async def airport(self, code: str) -> Airport | None:
        """The airport with this FAA code."""
        return self.records.airports.get(code)

    @rpc
    async def airports(self, codes: list[str]) -> dict[str, Airport | None]:
        """The airports with these FAA codes."""
        return _pick(self.records.airports, codes)

    @rpc
    async def carrier(self, code: str) -> str | None:
        """The name of the carrier with this code."""
        return self.records.carriers.get(code)

    @rpc
    async def carriers(self, codes: list[str]) -> dict[str, str | None]:
        """The names of the carriers with these codes."""
        return _pick(self.records.carriers, codes)

    @rpc
    async def weather(self, airport: str, hour: str) -> Weather | None:
        """The observation at a New York airport in an hour (UTC, `2013-02-08T22:00:00Z`)."""
        return self.records.weather.get((airport, hour))

    @rpc
    async def publish_planes(self) -> int:
        """Appends the aircraft to their log, unless they are there; says how many were appended."""
        if await self.records.has_published():
            return 0
        await self.log_of_planes.append_many(self.records.rows)
        return len(self.records.rows)


def _pick(records: Mapping[str, T], keys: Iterable[str]) -> dict[str, T | None]:
    return {key: records.get(key) for key in keys}
