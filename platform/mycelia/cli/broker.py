"""`mycelia broker start|stop|status`: a private RabbitMQ node for one directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mycelia.broker.find import (
    DEFAULT_DIRECTORY,
    how_to_install,
    install_rabbitmq,
    shown,
    start_private_node,
)
from mycelia.broker.node import PrivateNode, find_rabbitmq
from mycelia.errors import ConfigError, MyceliaError

__all__ = ["add_broker_commands", "main"]


def add_broker_commands(
    subparsers: argparse._SubParsersAction[Any],
) -> None:
    """Add `broker` to the command line. The chosen action is left in `args.main`: called with args, it gives the exit code."""
    broker = subparsers.add_parser(
        "broker",
        help="start, stop and show a private RabbitMQ node",
        description="A private RabbitMQ node for one directory: own port, data and log, on 127.0.0.1 only.",
    )
    _add_actions(broker)


def _add_actions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, action, text in (
        ("start", _start, "start it and print its URI"),
        ("stop", _stop, "stop it; its data stays"),
        ("status", _status, "tell whether it runs, and where"),
    ):
        command = actions.add_parser(name, help=text, description=text)
        command.add_argument(
            "--directory",
            type=Path,
            default=DEFAULT_DIRECTORY,
            help="where it keeps its data and log (default: %(default)s)",
        )
        if name == "start":
            command.add_argument(
                "--port", type=int, help="AMQP port (default: the last one, or a free one)"
            )
            command.add_argument(
                "--install",
                action="store_true",
                help="install RabbitMQ with apt-get first where it is missing (as root, or by sudo without a password)",
            )
        command.set_defaults(main=_reporting(action))


def _reporting(action: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The action with its errors told in words: they are messages to people."""

    def run(args: argparse.Namespace) -> int:
        try:
            return action(args)
        except MyceliaError as exc:
            print(f"mycelia broker: {exc}", file=sys.stderr)
            return 1

    return run


def _start(args: argparse.Namespace) -> int:
    def tell(line: str) -> None:
        print(line, file=sys.stderr)  # standard output is the URI's, for $(mycelia broker start)

    if find_rabbitmq() is None:
        if not args.install:
            raise ConfigError(f"RabbitMQ is not installed: {how_to_install()}.")
        if not install_rabbitmq(args.directory.parent / "apt.log", say=tell):
            raise ConfigError(
                "RabbitMQ cannot be installed from here (that takes apt-get, and root or sudo without a password). "
                "Debian, Ubuntu: sudo apt-get install rabbitmq-server; macOS: brew install rabbitmq."
            )
    found = start_private_node(PrivateNode(args.directory, port=args.port), tell)
    tell(str(found))
    print(found.uri)
    return 0


def _stop(args: argparse.Namespace) -> int:
    node = PrivateNode(args.directory)
    running = node.status().running
    node.stop()
    print(f"{'stopped' if running else 'not running'}: {shown(node.directory)}")
    return 0


def _status(args: argparse.Namespace) -> int:
    status = PrivateNode(args.directory).status()
    if not status.running:
        print(f"not running: {shown(status.directory)}")
        return 1
    print(f"running     RabbitMQ {status.version or '(not answering)'}, process {status.pid}")
    print(f"AMQP        {status.uri}")
    print(f"management  {status.management_url}  (guest, guest)")
    print(f"log         {shown(status.log_file)}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The same as `mycelia broker`, as `python -m mycelia.cli.broker`."""
    parser = argparse.ArgumentParser(prog="python -m mycelia.cli.broker")
    _add_actions(parser)
    args = parser.parse_args(arguments)
    code: int = args.main(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
