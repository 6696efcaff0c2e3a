"""Where the state of flows is, as commands are told."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING

from mycelia.cli.run import read_config
from mycelia.runtime.settings import DEFAULT_BROKER, FlowsSection, Settings

if TYPE_CHECKING:
    from mycelia.flow.state_home import StateHome

__all__ = ["add_state_argument", "home_of"]


def add_state_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--state`."""
    parser.add_argument(
        "--state",
        metavar="PLACE",
        help="where its state is: a directory, or postgresql://… (default: mycelia.flows.state of --config, or .mycelia/flows)",
    )


def home_of(args: argparse.Namespace) -> StateHome:
    """Where the state of flows is, as the command or its configuration says.

    Raises:
        ConfigError: it is a URL that cannot be read, or what it needs is not installed.
    """
    state = args.state
    if state is None:
        config = read_config(args.config, None)
        section = Settings.from_config({"AMQP_URI": DEFAULT_BROKER, **config}).mycelia.flows
        state = (section or FlowsSection()).state
    home: StateHome = import_module("mycelia.flow.state_home").state_home(state)
    return home
