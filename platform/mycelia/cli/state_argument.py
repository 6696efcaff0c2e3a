"""Where the state of flows is, as commands are told."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import TYPE_CHECKING

import msgspec

from mycelia.cli.run import read_config
from mycelia.runtime.settings import DEFAULT_BROKER, FlowsSection, Settings

if TYPE_CHECKING:
    from mycelia.amqp import Link
    from mycelia.flow.state_home import StateHome

__all__ = ["add_state_argument", "home_of", "section_of"]


def add_state_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--state`."""
    parser.add_argument(
        "--state",
        metavar="PLACE",
        help="where its state is: a directory, or postgresql://… (default: mycelia.flows.state of --config, or .mycelia/flows)",
    )


def section_of(args: argparse.Namespace) -> FlowsSection:
    """What the command or its configuration says of the state of flows."""
    section = None
    if args.state is None or args.config is not None:
        config = read_config(args.config, None)
        section = Settings.from_config({"AMQP_URI": DEFAULT_BROKER, **config}).mycelia.flows
    section = section or FlowsSection()
    if args.state is None:
        return section
    has_changelog = section.changelog and "://" not in args.state
    return msgspec.structs.replace(section, state=args.state, changelog=has_changelog)


def home_of(args: argparse.Namespace, link: Link) -> StateHome:
    """Where the state of flows is, as the command or its configuration says. Called on the link's event loop.

    Raises:
        ConfigError: it is a URL that cannot be read, or what it needs is not installed.
    """
    home_module = import_module("mycelia.flow.state_home")
    home: StateHome = home_module.logged_state_home(section_of(args), link)
    return home
