"""`mycelia top`: what the services at a broker do, as they do it; once, or again and again."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import sys
import time
from typing import Any

import msgspec

from mycelia.amqp import CLOSE_TIMEOUT, Link, LinkOptions, connect
from mycelia.cli.call_and_publish import add_connection_arguments
from mycelia.cli.failures import words_of
from mycelia.cli.run import event_loop_factory, read_config
from mycelia.cli.top_view import Screen, plain_text
from mycelia.clients.broker_questions import BrokerQuestions
from mycelia.errors import BrokerUnavailable, ConfigError, LinkError, MyceliaError, TopologyError
from mycelia.extras import require_extra
from mycelia.providers.metrics.answers import TOP_EXCHANGE, ProcessAnswer
from mycelia.providers.metrics.figures import FleetFigures, figures_of
from mycelia.runtime.settings import DEFAULT_BROKER, Settings

__all__ = ["Asker", "add_top_arguments", "top_command"]

EPILOG = """\
Shown are the processes whose configuration has `mycelia: metrics:`; they answer over the broker, and only when asked.

examples:
  mycelia top                          until Ctrl-C
  mycelia top --once                   one table
  mycelia top --once --json | jq '.methods[] | select(.p99_s > 1)'
  mycelia top --json                   a line of JSON every two seconds

exit codes: 0, also after Ctrl-C; 1 an error, told on stderr; 2 the command is wrong
"""

FIRST_WAIT_S = 1.0
"""Seconds for answers while it is not known how many there are; later all who answered before are waited for so long."""

MAX_PROCESSES = 1000
MAX_QUEUES = 300
"""Bounds of what is kept, and of what is asked of the broker each time. Arbitrary."""


def add_top_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "--interval",
        type=_interval,
        default=2.0,
        metavar="SECONDS",
        help="between two looks; rates are those of that time (default: 2)",
    )
    parser.add_argument("--once", action="store_true", help="look once, print, and end")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each look")
    add_connection_arguments(parser, taken="the broker", timeout=10.0)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds from 0.1 to 3600")
    return seconds


def top_command(args: argparse.Namespace) -> int:
    """`mycelia top`."""
    # Log lines of the link would be written over the tables; what matters of them is in the tables, or the error.
    logging.getLogger("mycelia").addHandler(logging.NullHandler())
    try:
        if not args.json:
            require_extra("top", "mycelia top (without --json)")
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            runner.run(_top(args))
    except KeyboardInterrupt:  # how one leaves it
        return 0
    except ConfigError as exc:
        print(f"mycelia: {exc}", file=sys.stderr)
        return 2
    except MyceliaError as exc:
        print(words_of(exc), file=sys.stderr)
        return 1
    return 0


async def _top(args: argparse.Namespace) -> None:
    config = read_config(args.config, args.broker)
    settings = Settings.from_config({"AMQP_URI": DEFAULT_BROKER, **config})
    link = connect(
        settings.AMQP_URI,
        LinkOptions(ssl=settings.AMQP_SSL, heartbeat=settings.HEARTBEAT or 0, name="mycelia top"),
    )
    await link.open(args.timeout)
    try:
        asker = Asker(link)
        await asker.start(args.timeout)
        if args.once:
            await asker.ask()
            await asyncio.sleep(args.interval)
            _print(await asker.ask(), args.json)
        elif args.json or not sys.stdout.isatty():
            await _repeat(asker, args.interval, lambda figures, _: _print(figures, args.json))
        else:
            with Screen() as screen:
                await _repeat(asker, args.interval, screen.show)
    finally:
        await link.aclose(CLOSE_TIMEOUT)


async def _repeat(asker: Asker, interval: float, show: Any) -> None:
    while True:
        begun = time.monotonic()
        show(await asker.ask(), asker.state)
        await asyncio.sleep(max(0.0, begun + interval - time.monotonic()))


def _print(figures: FleetFigures, as_json: bool) -> None:
    print(msgspec.json.encode(figures).decode() if as_json else plain_text(figures), flush=True)


class Asker:
    """Asks all processes at a broker, and remembers what they answered before.

    Args:
        link: an open link.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._questions = BrokerQuestions(link, TOP_EXCHANGE)
        self._answers: dict[str, ProcessAnswer] = {}
        self._before: dict[str, ProcessAnswer] = {}

    @property
    def state(self) -> str:
        """That of the link to the broker."""
        return self._link.state.value

    async def start(self, timeout: float) -> None:
        """Make ready to hear answers.

        Raises:
            LinkError: the broker does not let us, or not in time.
        """
        await self._questions.start(timeout)

    async def ask(self) -> FleetFigures:
        """Ask once. Processes that do not answer within a second are not in the figures; nor is any while the broker is away."""
        expected = set(self._answers)
        self._before = self._before | self._answers
        self._answers = {}

        def is_enough(body: bytes) -> bool:
            self._take(body)
            return bool(expected) and expected <= self._answers.keys()

        await self._questions.ask_all(is_enough, FIRST_WAIT_S)
        answers = list(self._answers.values())
        figures = figures_of(answers, self._before, await self._ready(answers))
        # Of those that have gone nothing is kept: they would come back as others.
        self._before = {key: value for key, value in self._before.items() if key in self._answers}
        return figures

    def _take(self, body: bytes) -> None:
        try:
            answer = msgspec.json.decode(body, type=ProcessAnswer)
        except (msgspec.DecodeError, RecursionError):
            return  # of another version, or not of ours at all
        if len(self._answers) < MAX_PROCESSES:
            self._answers[answer.id] = answer

    async def _ready(self, answers: list[ProcessAnswer]) -> dict[str, int | None]:
        queues = {
            reading.series.labels["queue"]
            for answer in answers
            for reading in answer.readings
            if "queue" in reading.series.labels
        }
        counts: dict[str, int | None] = {}
        for queue in sorted(queues)[:MAX_QUEUES]:
            try:
                counts[queue] = await self._link.message_count(queue, 2.0)
            except (TopologyError, ConfigError):
                counts[queue] = None  # gone meanwhile, or exclusive to another
            except (BrokerUnavailable, LinkError):
                break
        return counts
