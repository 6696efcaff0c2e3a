"""The `mycelia` command: what Nameko has no word for, and its own `run`."""

from __future__ import annotations

import argparse
import os
import select
import sys
from importlib.metadata import version
from typing import Any, NoReturn

from mycelia.cli.broker import add_broker_commands
from mycelia.cli.call_and_publish import (
    add_call_arguments,
    add_publish_arguments,
    call_command,
    publish_command,
)
from mycelia.cli.completion import SHELLS, completion_script
from mycelia.cli.dlq import add_dlq_commands
from mycelia.cli.flow import add_flow_commands
from mycelia.cli.leaving import leave
from mycelia.cli.log import add_log_commands
from mycelia.cli.nameko_hook import add_nameko_hook_commands
from mycelia.cli.run import add_run_arguments, run_command
from mycelia.cli.top import add_top_arguments, top_command
from mycelia.extras import install_command, is_installed
from mycelia.redaction import HIDDEN, redact_words

__all__ = ["build_parser", "main"]


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line without the password in a URI that has come to the wrong place."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            shown = " ".join(HIDDEN if redact_words(word) != word else word for word in unknown)
            self.error(f"unrecognized arguments: {shown}")
        return known

    def error(self, message: str) -> NoReturn:
        super().error(redact_words(message))


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="mycelia",
        description="Message-driven services and real-time pipelines on RabbitMQ.",
        epilog="`nameko run` and `nameko shell` work beside it: the programming model and the wire are Nameko's."
        + ("" if is_installed("nameko") else f" They come with: {install_command('nameko')}"),
    )
    parser.add_argument(
        "-v", "--version", action="version", version=f"mycelia {version('mycelia')}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run", help="run services", description="Run services until SIGTERM or Ctrl-C."
    )
    add_run_arguments(run)
    run.set_defaults(main=run_command)

    call = commands.add_parser(
        "call",
        help="call a method of a service",
        description="Call a method and print its result as JSON.",
    )
    add_call_arguments(call)
    call.set_defaults(main=call_command)

    publish = commands.add_parser(
        "publish",
        help="publish an event",
        description="Publish an event; done when the broker has it.",
    )
    add_publish_arguments(publish)
    publish.set_defaults(main=publish_command)

    add_dlq_commands(commands)
    add_log_commands(commands)
    add_flow_commands(commands)

    top = commands.add_parser(
        "top",
        help="show what services do",
        description="Show rates, times and queues of the services at a broker, until Ctrl-C.",
    )
    add_top_arguments(top)
    top.set_defaults(main=top_command)

    add_broker_commands(commands)
    add_nameko_hook_commands(commands)

    completion = commands.add_parser(
        "completion",
        help="print a shell completion script",
        description='Print a completion script. In .bashrc or .zshrc: eval "$(mycelia completion bash)"; '
        "in config.fish: mycelia completion fish | source",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(main=lambda args: _print(completion_script(args.shell, parser)))
    return parser


def _print(text: str) -> int:
    sys.stdout.write(text)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `mycelia` command. Returns the exit code.

    Args:
        argv: the arguments; `None` for those of the process, which then is to end within seconds.
    """
    parser = build_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        return 2
    args = parser.parse_args(argv)
    try:
        code: int = args.main(args)
    except BrokenPipeError:
        if not _is_read_no_more():
            raise
        code = 0
    return leave(code) if argv is None else code


def _is_read_no_more() -> bool:
    """Whether whoever reads what is printed has seen enough, as in `mycelia log tail … | head`. Nothing is printed any more, then."""
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)  # of itself it tells when the other end is gone
    if not reader.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


if __name__ == "__main__":
    sys.exit(main())
