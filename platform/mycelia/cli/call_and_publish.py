"""`mycelia call` and `mycelia publish`: services from the shell. JSON in, JSON out."""

from __future__ import annotations

import argparse
import asyncio
import math
import shlex
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from mycelia.call import Middleware, MiddlewareSource
from mycelia.cli.failures import words_of
from mycelia.cli.run import event_loop_factory, read_config
from mycelia.clients import Client
from mycelia.durations import seconds_of
from mycelia.errors import ConfigError, MyceliaError, RemoteError, Unroutable
from mycelia.providers.tracing import traces_of_program
from mycelia.runtime.settings import DEFAULT_BROKER
from mycelia.wire import JSON

__all__ = [
    "PROGRAM",
    "add_call_arguments",
    "add_connection_arguments",
    "add_publish_arguments",
    "call_command",
    "client_of",
    "duration_argument",
    "publish_command",
    "say_usage",
]

PROGRAM = "mycelia-cli"
"""The service of the spans of commands."""

CALL_EXAMPLES = """\
examples:
  mycelia call delays.worst                        no arguments
  mycelia call delays.worst 5                      one
  mycelia call registry.plane '"N14228"'           text is quoted as in JSON
  mycelia call delays.worst n=5                    by name
  mycelia call delays.worst '{"n": 5}'             an object: by name, too
  mycelia call maths.add '[1, 2]'                  an array: by position
  mycelia call delays.worst 5 | jq '.[0]'          the result is JSON

exit codes: 0 a result; 1 an error, told on stderr; 2 the command is wrong
"""

PUBLISH_EXAMPLES = """\
examples:
  mycelia publish tower runway_closed '{"runway": "31L"}'
  mycelia publish tower all_clear                  no payload: null
  mycelia publish --after 5m tower all_clear       arrives in five minutes
  echo '{"runway": "31L"}' | mycelia publish tower runway_closed -

exit codes: 0 the broker has it, or nobody wanted it, which is told on stderr (with --mandatory: 1); 1 an error, told on stderr;
2 the command is wrong
"""


def add_connection_arguments(
    parser: argparse.ArgumentParser,
    *,
    taken: str = "the broker and serializer",
    timeout: float = 30.0,
) -> None:
    """Where the broker is, and how long to wait for it.

    Args:
        taken: what the command takes from the configuration.
        timeout: seconds, where none are given.
    """
    parser.add_argument(
        "--broker", metavar="URI", help="the broker's URI (default: $AMQP_URI, or localhost)"
    )
    parser.add_argument("--config", metavar="FILE", help=f"take {taken} from a YAML file")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=timeout,
        metavar="SECONDS",
        help=f"give up after this (default: {timeout:g})",
    )


def _seconds(text: str) -> float:
    """A time to wait, as argparse wants it read."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds above 0, for instance 2.5")
    return seconds


def duration_argument(text: str) -> float:
    """Seconds, or a time with its unit, as argparse wants it read."""
    try:
        return seconds_of(float(text) if text.replace(".", "", 1).isdecimal() else text)
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def add_call_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = CALL_EXAMPLES
    parser.add_argument("target", metavar="service.method", help="what to call")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="JSON",
        help="one array (by position), one object (by name), or one value or name=value for each argument; - reads stdin",
    )
    add_connection_arguments(parser)


def add_publish_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = PUBLISH_EXAMPLES
    parser.add_argument("source", help="the service that the event comes from")
    parser.add_argument("event", help="the event's type")
    parser.add_argument("payload", nargs="?", default="null", metavar="JSON", help="- reads stdin")
    parser.add_argument(
        "--mandatory",
        action="store_true",
        help="fail when no handler has ever subscribed to the event",
    )
    parser.add_argument(
        "--after",
        type=duration_argument,
        metavar="TIME",
        help="let it arrive later: 30s, 5m, 2h, 30d; the broker keeps it meanwhile",
    )
    add_connection_arguments(parser)


def call_command(args: argparse.Namespace) -> int:
    """`mycelia call`."""
    service, _, method = args.target.rpartition(".")
    if not service or not method:
        return say_usage(f'"{args.target}": write service.method, for instance delays.worst')
    try:
        positional, named = read_arguments(args.arguments)
    except ValueError as exc:
        return say_usage(str(exc))

    async def call() -> Any:
        async with _traced_client(args) as client:
            # Through a proxy: the remote method may have a parameter `timeout` of its own.
            proxy = await client.service(service, timeout=args.timeout)
            return await proxy[method](*positional, **named)

    return _run(call(), print_result=True)


def publish_command(args: argparse.Namespace) -> int:
    """`mycelia publish`."""
    try:
        payload = _read_json(args.payload)
    except ValueError as exc:
        return say_usage(str(exc))
    if args.after and args.mandatory:
        return say_usage(
            "--after and --mandatory exclude each other: who handles the event is known only when its time has come."
        )

    async def publish() -> None:
        async with _traced_client(args) as client:
            try:
                if args.after:
                    await client.publish(args.source, args.event, payload, after=args.after)
                    return
                await client.publish(args.source, args.event, payload, mandatory=True)
            except Unroutable:
                if args.mandatory:
                    raise
                print(
                    f'mycelia: no handler has ever subscribed to "{args.event}" of "{args.source}": the event went '
                    "nowhere. Check both names, or start the service that handles it.",
                    file=sys.stderr,
                )

    return _run(publish(), print_result=False)


def read_arguments(texts: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments from the command line; `name=value` is a named one.

    Raises:
        ValueError: not JSON, with the text and how to quote it; or a name given twice.
    """
    values: list[Any] = []
    named: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():  # no JSON begins like that
            values.append(_read_json(text))
        elif name in named:
            raise ValueError(f'"{name}" is given twice.')
        else:
            named[name] = _read_json(value, f"{name}=")
    if named or len(values) != 1:
        return values, named
    if isinstance(values[0], list):
        return values[0], {}
    if isinstance(values[0], dict):
        return [], values[0]
    return values, {}


def _read_json(text: str, before: str = "") -> Any:
    """What `text` says; `before` it stood on the command line."""
    if text == "-":
        text = sys.stdin.read()
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise ValueError(f"{_shortened(text)!r} is nested too deeply to be read.") from None
    except UnicodeEncodeError:
        raise ValueError(f"{_shortened(text)!r} is not UTF-8, as JSON is.") from None
    except msgspec.DecodeError as exc:
        raise ValueError(
            f"{_shortened(text)!r} is not JSON ({exc}). {_advice(text, before)}"
        ) from None


def _advice(text: str, before: str) -> str:
    """What to write instead; pasted into a shell, it works."""
    if text.lstrip().startswith(("{", "[")):
        return """Text in it, names as well, needs quotes, for instance '{"name": "text"}'"""
    if len(text) > 60:
        return "Text needs quotes, as in JSON."
    return f"Text needs quotes: {shlex.quote(before + msgspec.json.encode(text).decode())}"


def _shortened(text: str) -> str:
    """Enough of an argument to know it by: the error is to be one line."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def client_of(
    args: argparse.Namespace, middleware: Iterable[Middleware | MiddlewareSource] = ()
) -> Client:
    """A client of the broker that the command line names, not open yet."""
    config = read_config(args.config, args.broker)
    uri = config.get("AMQP_URI", DEFAULT_BROKER)
    return Client(
        uri, timeout=args.timeout, name="mycelia_cli", config=config, middleware=middleware
    )


@asynccontextmanager
async def _traced_client(args: argparse.Namespace) -> AsyncIterator[Client]:
    """As `client_of()`, open; with a trace where OpenTelemetry's variables or the configuration ask for it."""
    config = read_config(args.config, args.broker)
    async with (
        traces_of_program(PROGRAM, config) as middleware,
        client_of(args, middleware) as client,
    ):
        yield client


def _run(coroutine: Any, *, print_result: bool) -> int:
    try:
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            result = runner.run(coroutine)
    except KeyboardInterrupt:
        return 130
    except ConfigError as exc:
        return say_usage(str(exc))
    except RemoteError as exc:
        print(f"{exc.exc_type}: {exc.value}", file=sys.stderr)
        if (
            exc.remote_traceback and "\n" in exc.remote_traceback.strip()
        ):  # else the same line again
            print(f"\n{exc.remote_traceback.rstrip()}", file=sys.stderr)
        return 1
    except MyceliaError as exc:
        print(words_of(exc), file=sys.stderr)
        return 1
    if print_result:
        # For people and for `jq`: dates, decimals and ids as the texts that they are.
        plain = msgspec.to_builtins(result, builtin_types=(bytes,), str_keys=True)
        print(msgspec.json.format(JSON.encode(plain)).decode())
    return 0


def say_usage(message: str) -> int:
    """Say what is wrong with a command line. Returns its exit code."""
    print(f"mycelia: {message}", file=sys.stderr)
    return 2
