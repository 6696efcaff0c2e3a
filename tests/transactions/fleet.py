"""Processes that run `killed_services`, on one database: started, killed, and what they have written."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import sqlalchemy as sa
from tests.cli.commands import MYCELIA
from tests.processes import ROOT, Process
from tests.progress import until

from mycelia import Outbox

SERVICES = ROOT / "tests" / "transactions" / "killed_services.py"


class Fleet:
    """Processes that run the services, on one database."""

    def __init__(self, folder: Path, uri: str, url: str, processes: ExitStack) -> None:
        (folder / "killed_services.py").write_text(SERVICES.read_text())
        (folder / "config.yaml").write_text(f"AMQP_URI: {uri}\nHEARTBEAT: 5\n")
        self.folder = folder
        self._url = url
        self._processes = processes
        more = {"timeout": 30} if url.startswith("sqlite") else {}
        self.engine = sa.create_engine(url, connect_args=more, pool_pre_ping=True)
        processes.callback(self.engine.dispose)
        self._create_tables()

    def _create_tables(self) -> None:
        tables = sa.MetaData()
        for name in ("payments", "entries"):
            sa.Table(
                name,
                tables,
                sa.Column("row", sa.Integer, primary_key=True),
                sa.Column("number", sa.Integer, nullable=False),
            )
        tables.create_all(self.engine)
        Outbox.metadata.create_all(self.engine)

    async def start(self, *services: str, **environment: str) -> Process:
        names = [f"killed_services:{name}" for name in services]
        command = (*MYCELIA, "run", *names, "--config", "config.yaml")
        process = self._processes.enter_context(
            Process(*command, cwd=self.folder, BANK_URL=self._url, **environment)
        )
        await asyncio.to_thread(process.wait_until_ready)
        return process

    def counts(self, table: str) -> Counter[int]:
        with self.engine.connect() as connection:
            return Counter(connection.scalars(sa.text(f"SELECT number FROM {table}")))

    def arrivals(self) -> list[int]:
        path = self.folder / "arrivals"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def left(self) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(sa.text("SELECT count(*) FROM mycelia_outbox")) or 0

    def reached(self) -> tuple[int, int, int]:
        """What changes while anything goes on."""
        return self.counts("payments").total(), self.counts("entries").total(), self.left()

    async def settled(self, count: int) -> None:
        """Wait until all orders are payments and entries, and nothing waits to be published."""
        await until(
            lambda: self.reached() == (count, count, 0), self.reached, what="all are entered"
        )
