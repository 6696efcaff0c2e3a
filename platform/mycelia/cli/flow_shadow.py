"""What `mycelia flow shadow` does: new code run over the records that the old has had, and its results held against the old's."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Final
from uuid import uuid4

import msgspec

from mycelia.amqp import Link
from mycelia.cli.actions import on_link, print_line, say_error
from mycelia.cli.described import flows_of
from mycelia.cli.dlq_output import as_json
from mycelia.cli.log_diff import print_differences
from mycelia.cli.log_follow import progress_text
from mycelia.cli.progress_line import ProgressLine
from mycelia.cli.run import read_config
from mycelia.control.shadow_runs import ComparedLog, Comparing, ShadowRun
from mycelia.errors import ConfigError, LinkError, MyceliaError, RuntimeStateError
from mycelia.flow.shadow import FlowShadow, shadow_of
from mycelia.flow.standing import moment_text

__all__ = ["shadow_action"]

LOOK_S: Final = 0.5

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def shadow_action(args: argparse.Namespace) -> int:
    """Run the shadow of a flow. 1 where its results differ; what it has made is gone, however it ends."""
    try:
        found = flows_of(args.flow)
        if len(found) > 1:
            names = ", ".join(f"{cls.__module__}:{cls.__qualname__}.{m}" for cls, m, _ in found)
            raise ConfigError(f"{args.flow} has several flows: {names}. Name one.")
        ((cls, method, declared),) = found
        name = f"shadow-{uuid4().hex[:8]}"
        shadow = shadow_of(cls, method, declared, args.start, name)
        if args.against is not None and len(shadow.logs) > 1:
            logs = ", ".join(log.name for log, _ in shadow.logs)
            raise ConfigError(f"{shadow.of} gives to {logs}: --against is of one log.")
    except MyceliaError as exc:
        return say_error(exc)

    async def run(args: argparse.Namespace, link: Link) -> int:
        return await _Shadow(args, link, shadow).run()

    return on_link(run)(args)


class _Shadow:
    """One run of the command."""

    def __init__(self, args: argparse.Namespace, link: Link, shadow: FlowShadow) -> None:
        self._args = args
        self._shadow = shadow
        config = read_config(args.config, args.broker)
        how = Comparing(
            by=args.by,
            ignore=args.ignore,
            last_only=args.last,
            shown=args.show,
            until_ms=None if args.until is None else int(args.until.timestamp() * 1000),
            warm_up_ms=int(args.warm_up * 1000),
        )
        self._until_ms = how.until_ms
        self._run = ShadowRun(link, shadow, config, args.start, how, against=args.against)
        self._line = ProgressLine()
        self._is_enough = asyncio.Event()
        self._is_interrupted = False
        self._working: asyncio.Task[list[ComparedLog]] | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            self._working = asyncio.create_task(self._work(), name="mycelia:shadow")
            try:
                compared = await self._working
            except asyncio.CancelledError:
                self._line.end()
                if not self._is_interrupted:
                    raise
                print("interrupted: nothing was compared", file=sys.stderr)
                return 130
            self._line.end()
            return self._tell(compared)
        finally:
            # The signals stay caught: what is begun to be cleared away is, with bounds on each wait.
            try:
                await self._run.aclose()
            except LinkError as exc:
                name = self._shadow.group.partition(".")[0]
                print(
                    f"not all of the shadow's queues and exchanges could be deleted ({exc}): those with {name} in their names may go",
                    file=sys.stderr,
                )
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._args.follow and not self._is_enough.is_set():
            self._is_enough.set()
            return
        self._is_interrupted = True
        if self._working is not None:
            self._working.cancel()

    # --- its work --------------------------------------------------------------------------------

    async def _work(self) -> list[ComparedLog]:
        self._say_what()
        run = self._run
        await run.start(self._args.timeout)
        while not await run.is_through(self._until_ms) and not self._is_enough.is_set():
            self._line.tell(progress_text(run.figures()))
            await asyncio.sleep(LOOK_S)
        self._line.end()
        print(f"read: {run.figures().done} entries", file=sys.stderr)
        if self._args.follow and (compared := await self._follow()) is not None:
            return compared
        return await run.compare()

    async def _follow(self) -> list[ComparedLog] | None:
        """Compare again and again what comes, until that is enough. What came of the last time, if no more can be kept."""
        told = ""
        compared: list[ComparedLog] | None = None
        while not self._is_enough.is_set():
            self._run.check()
            try:
                compared = await self._run.compare(goes_on=True)
            except ConfigError as exc:  # more than is kept
                if compared is None:
                    raise
                print(
                    f"no more is followed, as there is {exc} This is as of before.", file=sys.stderr
                )
                return compared
            now = "; ".join(
                f"{one.log}: {one.report.same} the same, {one.report.different} different, {one.report.only_left} only there, "
                f"{one.report.only_right} only in the shadow's, up to {_moment(one.until_ms)}"
                for one in compared
            )
            if now != told:
                told = now
                print(now, file=sys.stderr, flush=True)
            try:
                async with asyncio.timeout(self._args.interval):
                    await self._is_enough.wait()
            except TimeoutError:
                continue
        return None

    def _say_what(self) -> None:
        shadow = self._shadow
        logs = ", ".join(f"{own.name} for {log.name}" for log, own in shadow.logs)
        print(f"shadow of {shadow.of}: {logs}", file=sys.stderr)
        for one in shadow.caught:
            print(
                f'output "{one.name}" goes nowhere, instead of to {one.instead_of}', file=sys.stderr
            )

    def _tell(self, compared: list[ComparedLog]) -> int:
        """Print what came of it; the exit code."""
        shadow, args = self._shadow, self._args
        for caught in shadow.caught:
            print(
                f'output "{caught.name}": {caught.records} records, not given to {caught.instead_of}',
                file=sys.stderr,
            )
        if dead := self._run.dead_letters:
            print(
                f"{dead} records would be dead letters of the shadow's, and went nowhere",
                file=sys.stderr,
            )
        if not any(one.report.left_records or one.report.right_records for one in compared):
            raise RuntimeStateError(
                "nothing was compared: neither the flow's logs nor the shadow's have a result of the time that both have read. Begin earlier (--from), "
                "or wait until event time has come further."
            )
        if args.json:
            told = [{"is_same": one.report.is_same, **msgspec.to_builtins(one)} for one in compared]
            caught_of = {one.name: one.records for one in shadow.caught}
            print_line(
                as_json(
                    {
                        "is_same": all(one.report.is_same for one in compared),
                        "flow": shadow.of,
                        "logs": told,
                        "caught": caught_of,
                        "dead_letters": dead,
                    }
                )
            )
        else:
            for one in compared:
                print_differences(one.report, one.log, "the shadow's", args.by)
                if one.from_ms is not None or one.until_ms is not None:
                    print(
                        f"compared: results from {'the beginning' if one.from_ms is None else moment_text(one.from_ms)} to {_moment(one.until_ms)}, for which the shadow has read all",
                        file=sys.stderr,
                    )
        if any(one.report.only_right and one.until_ms is not None for one in compared):
            print(
                f"what only the shadow has may still be to come from the code that runs: mycelia flow lag {shadow.of}",
                file=sys.stderr,
            )
        return 0 if all(one.report.is_same for one in compared) else 1


def _moment(time_ms: int | None) -> str:
    return "the end" if time_ms is None else moment_text(time_ms)
