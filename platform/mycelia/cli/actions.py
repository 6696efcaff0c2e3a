"""Commands that have actions: `mycelia dlq ls`, `mycelia log tail`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["AddAction", "RunAction", "add_command_of_actions"]

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
