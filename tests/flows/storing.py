"""A service that puts what comes to it into a table of the PostgreSQL in which its state is. Run as it is by a command, or in a test."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from mycelia import Log
from mycelia.flow import FlowOutput, Stream, flow, sql_table
from mycelia.flow.state_file import FlowCheckpoint

__all__ = ["SERVICE", "STORED", "TABLE", "Stored", "Storing", "checkpoint_and_rows", "storing"]

SERVICE = Path(__file__)

TABLE = "CREATE TABLE stored (at BIGINT GENERATED ALWAYS AS IDENTITY, plane TEXT, number INT)"


@dataclass
class Stored:
    plane: str
    number: int


STORED: Log[Stored] = Log("stored", of=Stored, key="plane", partitions=2)


def storing(url: str, **options: Any) -> type:
    """A service whose table is at `url`."""

    class Storing:
        name = "storing"

        @flow(STORED, **{"commit_every": "20ms", **options})
        def on(self, flights: Stream[Stored]) -> FlowOutput:
            return flights.key_by(lambda one: one.plane).to(sql_table(url, "stored", of=Stored))

    return Storing


Storing = storing(os.environ.get("STORED_AT", "sqlite:///nowhere.db"), commit_every="5ms")


def checkpoint_and_rows(uri: str) -> tuple[dict[int, int], Sequence[Stored]]:
    """Before which entry of each partition all has been taken, and what rows there are, as one reader sees them at one moment."""
    with psycopg.connect(uri) as db:
        db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        rows = db.execute("SELECT plane, number FROM stored ORDER BY at").fetchall()
        there = db.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'mycelia_flows'").fetchone()
        query = "SELECT partition, checkpoint FROM mycelia_flows.partition"
        kept = db.execute(query).fetchall() if there else []
    taken = {
        partition: position.offset
        for partition, body in kept
        for position in msgspec.msgpack.decode(body, type=FlowCheckpoint).positions.values()
    }
    return taken, [Stored(*row) for row in rows]
