"""Commands that have actions: `mycelia dlq ls`, `mycelia log tail`; and what those share that look at a broker."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Protocol

from mycelia.amqp import Link
from mycelia.cli.call_and_publish import client_of, say_usage
from mycelia.cli.dlq_output import for_terminal
from mycelia.cli.failures import FailedImport, describe_failure, words_of
from mycelia.cli.run import event_loop_factory
from mycelia.durations import seconds_of
from mycelia.errors import ConfigError, MyceliaError
from mycelia.logs.position import StartAt

__all__ = [
    "AddAction",
    "RunAction",
    "add_command_of_actions",
    "confirm",
    "exit_code_of",
    "loaded",
    "on_link",
    "print_line",
    "print_table",
    "say_error",
    "start_argument",
    "whole_number",
]

RunAction = Callable[[argparse.Namespace], int]
"""What an action does; returns the exit status."""


class AddAction(Protocol):
    """Adds one action: its name, what it does in a line, and how. Returns its parser, for its arguments."""

    def __call__(self, name: str, text: str, run: RunAction) -> argparse.ArgumentParser: ...


def add_command_of_actions(
    subparsers: argparse._SubParsersAction[Any],
    name: str,
    *,
    text: str,
    description: str,
    epilog: str,
) -> AddAction:
    """Add command `name` to the command line. The chosen action is left in `args.main`."""
    command = subparsers.add_parser(
        name,
        help=text,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = command.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(name: str, text: str, run: RunAction) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        parser.set_defaults(main=run)
        return parser

    return add


def loaded(module: str, name: str) -> RunAction:
    """An action of a module that is loaded as it runs: other commands start without it."""

    def run(args: argparse.Namespace) -> int:
        status: int = getattr(import_module(module), name)(args)
        return status

    return run


def whole_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number")
    return int(text)


def start_argument(text: str) -> StartAt:
    """Where to begin, as a command line says it."""
    if text in ("first", "last", "next"):
        return text
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    with suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    with suppress(ConfigError, OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(time.time() - seconds_of(text), UTC)
    raise argparse.ArgumentTypeError(
        f"{text!r}: expected first, last, next, an offset, a time such as 2026-11-26T12:00Z (UTC where it does not say), "
        "or how long ago: 10m"
    )


def on_link(action: Callable[[argparse.Namespace, Link], Awaitable[int]]) -> RunAction:
    """The action as a command: on an open link, its errors in words."""

    def run(args: argparse.Namespace) -> int:
        async def act() -> int:
            async with client_of(args) as client:
                return await action(args, client.link)

        return exit_code_of(act())

    return run


def exit_code_of(acting: Coroutine[Any, Any, int]) -> int:
    """Run a command to its end: its exit code, with its errors in words."""
    try:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            return runner.run(acting)
    except KeyboardInterrupt:
        return 130
    except MyceliaError as exc:
        return say_error(exc)


def say_error(error: MyceliaError) -> int:
    """What a command ends with, in words; returns its exit code."""
    if isinstance(error, FailedImport):
        print(describe_failure(str(error), error.error), file=sys.stderr)
        return 1
    if isinstance(error, ConfigError):
        return say_usage(str(error))
    print(words_of(error), file=sys.stderr)
    return 1


async def confirm(asked: str) -> bool:
    """Ask on the terminal. False without one, which is told, and for any answer but a yes."""
    if not sys.stdin.isatty():
        say_usage(f"{asked} There is nobody to ask: say --yes.")
        return False
    print(f"{asked} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = await asyncio.to_thread(sys.stdin.readline)
    return answer.strip().lower() in ("y", "yes")


def print_line(line: str) -> None:
    sys.stdout.write(f"{for_terminal(line)}\n")
    sys.stdout.flush()


def print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print_line(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
