"""The flights pipeline, run and checked: `python -m services.demo`.

Finds or starts a broker, starts the services with `nameko run`, replays the flights as fast as they go, compares every figure
of `delays` with a batch query over the same rows, and stops what it started. `--stay` leaves it running, with the live page.
`BROKER=memory` runs all of it in this process, without a broker. `--install` lets it install RabbitMQ with apt-get.
`--faults` makes the registry flaky and one handler wrong, `--kill` kills services and the broker on the way; every figure is to be
right all the same, in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from mycelia import Client
from mycelia.amqp import Link, connect
from mycelia.errors import CallError, MyceliaError, RemoteError
from mycelia.testing import SpanReceiver
from services.faulty_story import (
    DEAD_QUEUE,
    FAULTS_CONFIG,
    TRACED,
    CommandFailed,
    count_dead,
    has_whole_trace,
    mycelia,
    tree_of,
    worth_showing,
)
from services.fleet import CONFIG, ROOT, Fleet, ServiceDied, child_fleet, in_process_fleet
from services.flights.dataset import Tables, flight_id, flights_of, load
from services.flights.messages import due_events
from services.flights.verify import Batch, Comparison, compare
from services.killing_story import KILL_SPEED_S, Killing

if TYPE_CHECKING:
    from mycelia.broker import FoundBroker, PrivateNode

__all__ = ["DemoFailed", "main"]

STATE = ROOT / ".mycelia"
START_S = 120.0
STALLED_S = 30.0
SETTLED_S = 5.0
"""Without a change: what differs then is wrong."""
POLL_S = 0.1
LIVE_DAY, LIVE_SPEED = "2013-02-08", 7200.0
PAGE_ROWS = 2000


class Wish(NamedTuple):
    """What is asked for on the command line."""

    stay: bool
    days: int | None
    install: bool
    faults: bool
    kill: bool


class DemoFailed(RuntimeError):
    """The demonstration did not come out as promised; the message says how."""


def say(step: str, text: str) -> None:
    """One line of the story."""
    ProgressLine.leave()
    sys.stdout.write(f"{step:<10} {text}\n")
    sys.stdout.flush()


class ProgressLine:
    """A line that is written over on a terminal, and at each tenth of the way elsewhere."""

    is_open = False
    """Whether the cursor is behind one, which what comes next would be appended to."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._tenth = -1
        self._terminal = sys.stdout.isatty()

    def show(self, done: int, total: int, more: str) -> None:
        """`done` of `total`."""
        share = done / total if total else 1.0
        if self._terminal:
            bar = "█" * int(24 * share) + "░" * (24 - int(24 * share))
            sys.stdout.write(f"\r{self._step:<10} {bar} {share:4.0%}  {more}\x1b[K")
            sys.stdout.flush()
            ProgressLine.is_open = True
        elif int(10 * share) > self._tenth:
            self._tenth = int(10 * share)
            say(self._step, f"{share:4.0%}  {more}")

    @staticmethod
    def leave() -> None:
        """Leaves the line as it stands, if there is one."""
        if ProgressLine.is_open:
            sys.stdout.write("\n")
            ProgressLine.is_open = False


class Demo:
    """What happens once the services run."""

    def __init__(self, client: Client, fleet: Fleet, board_url: str) -> None:
        self.client = client
        self.fleet = fleet
        self.board_url = board_url
        self.killing: Killing | None = None

    async def ask(self, service: str, method: str, **arguments: Any) -> Any:
        """Calls a service; fails at once, and with its log, if one has ended."""
        until = time.monotonic() + STALLED_S
        while True:
            self.fleet.check()
            try:
                return await self.client.call(
                    service, method, timeout=30 if self.killing is None else 5, **arguments
                )
            except RemoteError:
                raise
            except CallError:
                if self.killing is None or time.monotonic() > until:
                    raise
                await asyncio.sleep(POLL_S)

    async def wait_until_all_answer(self) -> float:
        """Seconds it took until every service answered."""
        began = time.monotonic()
        probes: dict[str, Callable[[], Awaitable[Any]]] = {
            "registry": lambda: self.client.call("registry", "carrier", "UA", timeout=2),
            "delays": lambda: self.client.call("delays", "summary", timeout=2),
            "flows": lambda: self.client.call("flows", "drawing", timeout=2),
            "enrich": lambda: self.client.call("enrich", "cache_statistics", timeout=2),
            "feed": lambda: self.client.call("feed", "status", timeout=2),
            "board": lambda: asyncio.to_thread(_fetch, f"{self.board_url}/api/summary"),
        }
        for service, probe in probes.items():
            while True:
                self.fleet.check()
                try:
                    await probe()
                    break
                except RemoteError:
                    raise
                except (CallError, OSError) as exc:
                    if time.monotonic() - began > START_S:
                        raise DemoFailed(
                            f"{service} does not answer within {START_S:.0f} s: {exc}"
                        ) from exc
                    await asyncio.sleep(POLL_S)
        return time.monotonic() - began

    async def replay(self, step: str, *, missing: int = 0, **arguments: Any) -> dict[str, Any]:
        """Runs a replay until `delays` has counted all of it, or all but `missing`; returns its summary."""
        status = await self.ask("feed", "start", **arguments)
        return await self.count(step, status["run"], status["total"] - missing)

    async def count(self, step: str, run: str, total: int) -> dict[str, Any]:
        """Waits until `delays` has counted `total` events of a replay; returns its summary."""
        line = ProgressLine(step)
        counted, moved_at = -1, time.monotonic()
        while True:
            status = await self.ask("feed", "status")
            summary: dict[str, Any] = await self.ask("delays", "summary", run=run)
            if status["state"] == "failed":
                raise DemoFailed(f"the feed failed: {status['error']}")
            if summary["counted"] != counted:
                counted, moved_at = summary["counted"], time.monotonic()
            line.show(counted, total, f"{counted:,} of {total:,} events counted")
            if self.killing is not None and total:
                await self.killing.at(counted / total)
            if counted >= total:
                line.leave()
                return summary
            if time.monotonic() - moved_at > STALLED_S:
                raise DemoFailed(
                    f"nothing was counted for {STALLED_S:.0f} s: {counted:,} of {total:,} events counted, "
                    f"{status['confirmed']:,} confirmed by the broker. See the logs in {STATE / 'logs'}."
                )
            await asyncio.sleep(POLL_S)

    async def verify(self, run: str, tables: Tables, *, with_alerts: bool = True) -> Comparison:
        """Compares every figure with the batch query's over `tables`; again, as long as they still change."""
        while True:
            result, version = await self._compared(run, tables, with_alerts)
            if not result.differences:
                return result
            moved_at = time.monotonic()
            while (await self.ask("delays", "summary", run=run))["version"] == version:
                if time.monotonic() - moved_at > SETTLED_S:
                    return result
                await asyncio.sleep(POLL_S)

    async def _compared(
        self, run: str, tables: Tables, with_alerts: bool
    ) -> tuple[Comparison, int]:
        version: int = (await self.ask("delays", "summary", run=run))["version"]
        hourly: list[dict[str, Any]] = []
        legs: list[dict[str, Any]] = []
        offset: int | None = 0
        while offset is not None:
            page = await self.ask("delays", "snapshot", offset=offset, limit=PAGE_ROWS, run=run)
            hourly += page["hourly"]
            legs += page["legs"]
            offset = page["next"]
        changes = await self.ask("delays", "changes", run=run)
        worst = await self.ask("delays", "worst", n=100, run=run)
        compared = await asyncio.to_thread(
            _compare, tables, changes, hourly, legs, worst, with_alerts
        )
        return compared, version


def _compare(
    tables: Tables,
    changes: dict[str, Any],
    hourly: list[dict[str, Any]],
    legs: list[dict[str, Any]],
    worst: list[dict[str, Any]],
    with_alerts: bool,
) -> Comparison:
    batch = Batch(tables)
    try:
        result = compare(batch, changes, hourly, legs, worst)
        if with_alerts:
            result.row("alerts", batch.alerts(), changes["alerts"])
        return result
    finally:
        batch.close()


def _fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


def free_address(port: int = 8000) -> str:
    """`127.0.0.1:8000`, or another port where this one is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return free_address(0)
        return f"127.0.0.1:{probe.getsockname()[1]}"


def log_to_file() -> None:
    """What the links of this process log goes beside the services' own logs, not in between the lines of the story."""
    folder = STATE / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=folder / "demo.log",
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )


def latency(summary: dict[str, Any]) -> str:
    """`p50 3.1 ms, p95 9.0 ms, p99 14.2 ms`."""
    measured = summary["latency"]
    return ", ".join(f"{name} {measured[f'{name}_ms']:,.1f} ms" for name in ("p50", "p95", "p99"))


def kept_state(uri: str) -> dict[str, str]:
    """Where the flows keep their state: a directory for each broker, since it goes with the broker's logs."""
    return {"FLIGHTS_STATE": str(STATE / "flows" / hashlib.sha256(uri.encode()).hexdigest()[:12])}


def first_days(days: int | None) -> Tables:
    """The tables with the flights of the first `days` days, or of all."""
    tables = load()
    if days is None:
        return tables
    chosen = sorted({flight_id(row)[:10] for row in tables.flights})[:days]
    return tables._replace(flights=[row for row in tables.flights if flight_id(row)[:10] in chosen])


class Faulty:
    """The part of the story that is told with faults.

    Args:
        receiver: takes the spans of the services.
        cancelled: flights whose handler has a mistake.
    """

    def __init__(self, demo: Demo, uri: str, receiver: SpanReceiver, cancelled: int) -> None:
        self._demo = demo
        self._uri = uri
        self._receiver = receiver
        self._cancelled = cancelled
        self._dead_before = 0
        """Dead letters of an earlier demonstration on the same broker; they are sent again with the others."""

    async def look_before(self) -> None:
        """Counts the dead letters that are there already."""
        async with self._link() as link:
            self._dead_before = await count_dead(link)

    async def bury(self) -> None:
        """Waits until each cancelled flight has been tried as often as it may."""
        async with self._link() as link:
            await self._until_all_are_dead(link)

    @asynccontextmanager
    async def _link(self) -> AsyncIterator[Link]:
        link = connect(self._uri)
        await link.open(START_S)
        try:
            yield link
        finally:
            await link.aclose()

    async def _until_all_are_dead(self, link: Link) -> None:
        line = ProgressLine("dead")
        dead, moved_at = -1, time.monotonic()
        while dead < self._cancelled:
            self._demo.fleet.check()
            now = await count_dead(link) - self._dead_before
            if now != dead:
                dead, moved_at = now, time.monotonic()
            elif time.monotonic() - moved_at > STALLED_S:
                raise DemoFailed(f"{dead:,} dead letters, {self._cancelled:,} were to be expected")
            line.show(
                min(dead, self._cancelled),
                self._cancelled,
                f"{dead:,} cancelled flights tried 5 times, in vain",
            )
            await asyncio.sleep(POLL_S)
        line.leave()

    async def mend(self, run: str, total: int) -> dict[str, Any]:
        """Finds the dead letters, shows one, repairs the handler and sends them again; the summary afterwards."""
        await self._show("dlq", "ls", DEAD_QUEUE, "--group")
        await self._show("dlq", "show", DEAD_QUEUE)
        say(
            "mended",
            "the handler of cancelled flights; enrich starts anew, the registry stays flaky",
        )
        await self._demo.fleet.restart("enrich", CONFIG)
        await self._demo.wait_until_all_answer()
        await self._show("dlq", "redrive", DEAD_QUEUE)
        return await self._demo.count("again", run, total)

    async def trace(self) -> None:
        """Draws the trace of an event that failed, was tried again and came through."""
        try:
            spans = await asyncio.to_thread(self._receiver.wait_for, has_whole_trace, STALLED_S)
        except TimeoutError as exc:
            raise DemoFailed(f"no trace of an event that failed and came through: {exc}") from exc
        say("trace", "of one flight's event that failed, was tried again and came through:")
        for line in tree_of(worth_showing(spans)):
            sys.stdout.write(f"    {line}\n")

    async def _show(self, *arguments: str) -> None:
        sys.stdout.write(f"$ mycelia {' '.join(arguments)}\n")
        for line in (await mycelia(self._uri, *arguments)).splitlines():
            sys.stdout.write(f"    {line}\n")
        sys.stdout.flush()


async def story(wish: Wish) -> None:
    """The demonstration from beginning to end.

    Raises:
        DemoFailed, ServiceDied, MyceliaError: it did not come out.
    """
    async with AsyncExitStack() as stack:
        address = free_address()
        receiver: SpanReceiver | None = None
        node: PrivateNode | None = None
        if os.environ.get("BROKER") == "memory":
            uri = "memory://flights"
            say("broker", "embedded: all services in this process, nothing else needed")
            fleet = await stack.enter_async_context(in_process_fleet(uri, address))
        else:
            broker = await stack.enter_async_context(running_broker(wish.install))
            uri, node = broker.uri, broker.node
            if wish.faults:
                receiver = stack.enter_context(SpanReceiver())
                more = {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                    **TRACED,
                    **kept_state(uri),
                }
                fleet = await stack.enter_async_context(
                    child_fleet(uri, address, STATE / "logs", config=FAULTS_CONFIG, more=more)
                )
            else:
                fleet = await stack.enter_async_context(
                    child_fleet(uri, address, STATE / "logs", more=kept_state(uri))
                )
        client = await stack.enter_async_context(Client(uri))
        demo = Demo(client, fleet, f"http://{address}")

        tables = await asyncio.to_thread(first_days, wish.days)
        took = await demo.wait_until_all_answer()
        say(
            "services", f"registry, delays, flows, enrich, feed and board answer after {took:.1f} s"
        )
        if wish.stay:
            say("board", f"{demo.board_url}/   (Ctrl-C stops everything)")

        last_day = max(flight_id(row)[:10] for row in tables.flights)
        faulty = None
        if receiver is not None:
            due = await asyncio.to_thread(lambda: due_events(flights_of(tables)))
            cancelled = sum(1 for event in due if event.kind == "cancelled")
            faulty = Faulty(demo, uri, receiver, cancelled)
            await faulty.look_before()
            say(
                "faults",
                "the registry fails one call in ten, and the handler of cancelled flights is wrong",
            )
            summary = await demo.replay(
                "replay", speed=0, last_day=last_day, missing=cancelled, via="events"
            )
            await faulty.bury()
            summary = await faulty.mend(summary["run"], len(due))
        elif wish.kill:
            demo.killing = Killing(fleet, node, say)
            if demo.killing.spares_the_broker:
                say("", "the broker is not this demonstration's own, and is spared")
            days = len({flight_id(row)[:10] for row in tables.flights})
            summary = await demo.replay(
                "replay", speed=days * 86_400 / KILL_SPEED_S, last_day=last_day
            )
        else:
            summary = await demo.replay("replay", speed=0, last_day=last_day)
        seconds = summary["last_counted_at"] - summary["first_emitted_at"]
        say(
            "",
            f"{summary['counted'] / seconds:,.0f} events a second end to end, in {seconds:.1f} s",
        )
        if not wish.kill:
            say(
                "",
                f"at full speed: {latency(summary)} from emitted to counted: the queues were filling",
            )
        if summary["duplicates"]:
            say("", f"{summary['duplicates']:,} events were delivered twice and counted once")

        result = await demo.verify(summary["run"], tables, with_alerts=faulty is None)
        if result.differences:
            shown = "\n".join(f"    {difference}" for difference in result.differences[:10])
            raise DemoFailed(
                f"{len(result.differences):,} of {result.figures:,} figures differ from the batch query:\n{shown}"
            )
        say("verified:", f"{result.figures:,} figures, 0 differences")
        if faulty is not None:
            await faulty.trace()

        day = await demo.replay(
            "live pace", speed=LIVE_SPEED, first_day=LIVE_DAY, last_day=LIVE_DAY
        )
        say("", f"8 February at {LIVE_SPEED / 3600:.0f} hours a second: {latency(day)}")

        if wish.stay:
            await demo.ask("feed", "start", speed=3600)
            say("running", f"{demo.board_url}/   (Ctrl-C stops everything)")
            while True:
                fleet.check()
                await asyncio.sleep(1)
        say("done", "stopping the services")


@asynccontextmanager
async def running_broker(install: bool) -> AsyncIterator[FoundBroker]:
    """A broker: the one `AMQP_URI` names, or a private node, which is stopped afterwards if it was started here."""
    from mycelia.broker import find_or_start_broker

    broker = await asyncio.to_thread(find_or_start_broker, install=install)
    say("broker", str(broker))
    try:
        yield broker
    finally:
        await asyncio.to_thread(broker.stop_if_started)


async def run(wish: Wish) -> int:
    """Tells the story; the exit code. SIGTERM and Ctrl-C stop it cleanly, the first of them."""
    loop = asyncio.get_running_loop()
    telling = asyncio.create_task(story(wish), name="demo")

    def stop() -> None:
        if (
            not telling.cancelling()
        ):  # a second one would cut the cleaning up short, and leave services behind
            say("stopping", "the services, each when it has done what it is at")
            telling.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await telling
    except asyncio.CancelledError:
        say("stopped", "everything that was started is stopped")
        return 0 if wish.stay else 130
    except (DemoFailed, ServiceDied, CommandFailed, MyceliaError) as exc:
        ProgressLine.leave()
        sys.stdout.flush()
        sys.stderr.write(f"\nFAILED: {exc}\n")
        return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m services.demo", description=__doc__)
    parser.add_argument("--stay", action="store_true", help="keep it running, with the live page")
    parser.add_argument("--days", type=int, metavar="N", help="replay the first N days only")
    parser.add_argument(
        "--install", action="store_true", help="install RabbitMQ with apt-get where it is missing"
    )
    parser.add_argument(
        "--faults",
        action="store_true",
        help="make things fail, and see every figure right in the end",
    )
    parser.add_argument(
        "--kill",
        action="store_true",
        help="kill services and the broker, and see every figure right in the end",
    )
    arguments = parser.parse_args(argv)
    for option in ("faults", "kill"):
        if getattr(arguments, option) and os.environ.get("BROKER") == "memory":
            parser.error(f"--{option} needs a broker: leave BROKER=memory out")
    if arguments.faults and arguments.kill:
        parser.error("--faults and --kill are two stories: choose one")
    if arguments.days is not None and arguments.days < 1:
        parser.error("--days must be at least 1")
    log_to_file()
    return asyncio.run(run(Wish(**vars(arguments))))


if __name__ == "__main__":
    sys.exit(main())
