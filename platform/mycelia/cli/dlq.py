"""`mycelia dlq`: dead letters listed, shown, changed, sent again, thrown away."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from mycelia.amqp import Link
from mycelia.amqp.uri import parse_uri
from mycelia.broker.management_api import ManagementApi, ManagementApiError
from mycelia.cli.actions import RunAction, add_command_of_actions, confirm, exit_code_of
from mycelia.cli.call_and_publish import (
    PROGRAM,
    add_connection_arguments,
    client_of,
)
from mycelia.cli.dlq_output import (
    Progress,
    as_json,
    of_letter,
    of_queue,
    of_report,
    print_groups,
    print_letter,
    print_queues,
    print_report,
)
from mycelia.cli.run import read_config
from mycelia.control.dead_letters import (
    AroundSending,
    DeadLetterQueue,
    Letter,
    LetterFilter,
    LetterGroups,
    Payload,
    Router,
    Stranded,
    Walk,
    belongs_to,
    changed_payload,
    find_queues,
    management_of,
    named_queue,
    purge,
    redrive,
    send_changed,
    with_changes,
)
from mycelia.durations import seconds_of
from mycelia.entrypoints.republished import own_user
from mycelia.errors import ConfigError, TopologyError
from mycelia.providers.tracing import traces_of_program
from mycelia.runtime.settings import DEFAULT_BROKER

__all__ = ["add_dlq_commands"]

EXAMPLES = """\
examples:
  mycelia dlq ls                                      all dead-letter queues
  mycelia dlq ls enrich --group                       those of a service, by error and handler
  mycelia dlq show QUEUE                              the first one: payload, headers, traceback
  mycelia dlq edit QUEUE 3 --set flight.carrier='"UA"'  change the third one, then send it
  mycelia dlq redrive QUEUE --error KeyError --rate 50  send some again, 50 a second
  mycelia dlq redrive QUEUE --dry-run                 tell what would be sent where
  mycelia dlq purge QUEUE --older-than 30d            throw the old ones away

QUEUE is a dead-letter queue (evt-feed-departed--enrich.departed.dead), the handler's queue, or a service.
Nothing is lost if a command is killed; see docs/dead-letters.md.

exit codes: 0 done; 1 an error, or messages that were meant and stay, told on stderr; 2 the command is wrong; 130 Ctrl-C
"""

LOOK = 10_000
"""Messages of a queue that `ls --group` looks at. Arbitrary: some seconds' worth."""


def add_dlq_commands(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `dlq` to the command line. The chosen action is left in `args.main`."""
    action = add_command_of_actions(
        subparsers,
        "dlq",
        text="list, show, edit, redrive and purge dead letters",
        description="Dead letters: messages that a handler could not handle.",
        epilog=EXAMPLES,
    )

    ls = action("ls", "list dead-letter queues", _command(_ls))
    ls.add_argument("queues", nargs="*", metavar="QUEUE", help="only these queues, or services")
    ls.add_argument("--group", action="store_true", help="count by error and handler")
    ls.add_argument(
        "--look",
        type=_whole,
        default=LOOK,
        metavar="N",
        help="messages of each queue to look at for --group, 0 for all (default: %(default)s)",
    )

    show = action("show", "show one dead letter", _command(_show))
    _add_one_arguments(show)

    edit = action("edit", "change a dead letter, then send it", _command(_edit))
    _add_one_arguments(edit)
    how = edit.add_mutually_exclusive_group()
    how.add_argument("--body", metavar="TEXT", help="the whole payload; - reads stdin")
    how.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=JSON",
        help="set a part of a JSON payload: flight.seats.0=7 (may be repeated)",
    )
    _add_route_arguments(edit)

    again = action("redrive", "send dead letters to their handlers again", _command(_redrive))
    again.add_argument("queues", nargs="+", metavar="QUEUE", help="queues, or services")
    _add_filter_arguments(again)
    again.add_argument("--limit", type=_above_0, metavar="N", help="send so many at most")
    again.add_argument("--rate", type=_rate, metavar="N", help="send so many a second")
    again.add_argument("--dry-run", action="store_true", help="send nothing, only tell")
    _add_route_arguments(again)

    away = action("purge", "throw dead letters away", _command(_purge))
    away.add_argument("queues", nargs="+", metavar="QUEUE", help="queues, or services")
    _add_filter_arguments(away)
    away.add_argument("--yes", action="store_true", help="do not ask")
    away.add_argument(
        "--foreign", action="store_true", help="also messages that Mycelia did not put there"
    )

    for parser in (ls, show, edit, again, away):
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument(
            "--management",
            metavar="URL",
            help="the management API, which finds queues (default: port 15672 of the broker, or the private node's)",
        )
        add_connection_arguments(parser)


def _add_one_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", metavar="QUEUE", help="a dead-letter queue")
    parser.add_argument(
        "position", nargs="?", type=_above_0, default=1, help="its place, from 1 (default: 1)"
    )
    _add_filter_arguments(parser)


def _add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which ones", "All that is given must be true of a message.")
    group.add_argument("--error", metavar="TYPE", help="the error's class: KeyError")
    group.add_argument("--method", metavar="NAME", help="the handler: service.method, or method")
    group.add_argument("--reason", help="handler_error, too_many_attempts, undecodable, expired, …")
    group.add_argument("--older-than", type=_age, metavar="AGE", help="failed longer ago: 30m, 2h")
    group.add_argument("--newer-than", type=_age, metavar="AGE", help="failed since: 30m, 2h")
    group.add_argument("--text", help="this in the body, the error or the traceback")
    group.add_argument(
        "--id", action="append", default=[], metavar="ID", help="its message id (may be repeated)"
    )


def _add_route_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where to", "By default, the queue that each one came from.")
    way = group.add_mutually_exclusive_group()
    way.add_argument("--to", metavar="QUEUE", help="another queue")
    way.add_argument(
        "--to-exchange",
        action="store_true",
        help="where it was first published: all handlers of an event get it again",
    )
    group.add_argument(
        "--unattended", action="store_true", help="also to queues that nobody consumes from now"
    )


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number")
    return int(text)


def _above_0(text: str) -> int:
    if not (number := _whole(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return number


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0.001 <= rate <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r}: expected messages a second, for instance 50")
    return rate


def _age(text: str) -> float:
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else seconds_of(text, "age")
    except (ConfigError, ValueError) as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


# --- what all actions need ---------------------------------------------------------------------------


def _command(action: Callable[[argparse.Namespace, _Broker], Awaitable[int]]) -> RunAction:
    """The action as a command: on an open link, its errors in words."""

    def run(args: argparse.Namespace) -> int:
        # What is adopted is said in the command's own words, where it matters.
        logging.getLogger("mycelia.amqp").addFilter(_is_no_adoption)

        async def act() -> int:
            async with _Broker.of(args) as broker:
                return await action(args, broker)

        return exit_code_of(act())

    return run


def _is_no_adoption(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("declared_differently")


class _Broker:
    """The broker in both of its ways: an open link, and the management API if it answers."""

    def __init__(
        self,
        link: Link,
        uri: str,
        management: str | None,
        timeout: float,
        around: AroundSending | None,
    ) -> None:
        self.link = link
        self.traced: dict[str, AroundSending] = {} if around is None else {"around": around}
        """For what sends messages."""
        self.timeout = timeout
        self.user = own_user(uri)
        self._uri = uri
        self._url = management

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, args: argparse.Namespace) -> AsyncIterator[_Broker]:
        config = read_config(args.config, args.broker)
        uri = config.get("AMQP_URI", DEFAULT_BROKER)
        if args.management is not None:
            management_of(uri, args.management)  # a wrong address is said at once
        async with traces_of_program(PROGRAM, config) as traces, client_of(args) as client:
            around: AroundSending | None = None
            if traces:
                from mycelia.providers.tracing.resends import span_of_resend

                around = span_of_resend
            yield cls(client.link, uri, args.management, args.timeout, around)

    async def all_queues(self) -> list[DeadLetterQueue]:
        """All dead-letter queues of the virtual host.

        Raises:
            TopologyError: the management API does not say; the text has the ways out.
        """
        where = "the management API"
        api: ManagementApi | None = None
        try:
            api = management_of(self._uri, self._url)
            where = f"the management API at {api.host}:{api.port}"
            vhost = parse_uri(self._uri)[0].vhost
            found = await asyncio.to_thread(find_queues, api, vhost)
            return [one async for one in self._counted(found)]
        except ConfigError as exc:
            why = str(exc)
        except ManagementApiError as exc:
            why = {
                0: "it does not answer",
                401: "it does not let this user in: give it the tag `management`, or another in --management",
                404: "there is none at this address",
            }.get(exc.status, str(exc))
        finally:
            if api is not None:
                api.close()
        raise TopologyError(
            f"{where} is needed to find queues, and {why}. Enable it (rabbitmq-plugins enable rabbitmq_management), say where it "
            "is (--management http://host:15672), or name the queues: evt-<source>-<event>--<service>.<method>.dead"
        )

    async def _counted(self, queues: list[DeadLetterQueue]) -> AsyncIterator[DeadLetterQueue]:
        """The queues with the counts of now: the management API's are some seconds old."""
        for queue in queues:
            with contextlib.suppress(TopologyError):  # it has gone meanwhile
                messages = await self.link.message_count(queue.name, self.timeout)
                yield msgspec.structs.replace(queue, messages=messages)

    async def queues(self, names: list[str]) -> list[DeadLetterQueue]:
        """The dead-letter queues that `names` mean: queues by their names, services by theirs; all without any.

        Raises:
            TopologyError: one of them means none.
        """
        if not names:
            return await self.all_queues()
        found: dict[str, DeadLetterQueue] = {}
        every: list[DeadLetterQueue] | None = None
        for name in names:
            try:
                queue = await named_queue(self.link, name, self.timeout)
            except TopologyError as no_queue:
                if every is None:
                    try:
                        every = await self.all_queues()
                    except TopologyError as exc:
                        raise TopologyError(f"{no_queue}. If it is a service: {exc}") from None
                of_service = [one for one in every if belongs_to(one.name, name)]
                if not of_service:
                    raise TopologyError(
                        f"{no_queue}, and no dead-letter queue of a service of that name. mycelia dlq ls shows what there is."
                    ) from None
                found.update((one.name, one) for one in of_service)
            else:
                found[queue.name] = queue
        return list(found.values())

    async def one_queue(self, name: str) -> str:
        """The one dead-letter queue that `name` means."""
        queues = await self.queues([name])
        if len(queues) > 1:
            names = ", ".join(queue.name for queue in queues)
            raise TopologyError(f'"{name}" has several dead-letter queues; choose one: {names}')
        return queues[0].name


def _filter_of(args: argparse.Namespace) -> LetterFilter:
    return LetterFilter(
        error=args.error,
        handler=args.method,
        reason=args.reason,
        older_than_s=args.older_than,
        newer_than_s=args.newer_than,
        text=args.text,
        message_ids=tuple(args.id),
    )


def _router_of(args: argparse.Namespace, broker: _Broker) -> Router:
    return Router(
        broker.link,
        to=args.to,
        to_exchange=args.to_exchange,
        unattended=args.unattended,
        timeout=broker.timeout,
    )


# --- ls ------------------------------------------------------------------------------------------------


async def _ls(args: argparse.Namespace, broker: _Broker) -> int:
    queues = await broker.queues(args.queues)
    rows = []
    for queue in queues:
        count = (args.look or None) if args.group else 1
        groups, oldest, looked_at, trouble = LetterGroups(), None, 0, None
        if queue.messages:
            try:
                async with Walk(
                    broker.link, queue.name, count=count, user=broker.user, timeout=broker.timeout
                ) as walk:
                    async for delivery in walk:
                        letter = Letter.of(delivery, queue.name, walk.seen)
                        groups.add(letter)
                        oldest = oldest or letter.failed_at_ms
                        await walk.keep(delivery)
                looked_at = walk.seen
            except TopologyError as exc:
                trouble = str(exc)
        rows.append(of_queue(queue, oldest, groups if args.group else None, looked_at, trouble))
    if args.json:
        print(as_json(rows))
    else:
        print_queues(rows)
        if args.group:
            print_groups(rows)
    return 0


# --- show and edit -------------------------------------------------------------------------------------


async def _find(args: argparse.Namespace, broker: _Broker) -> tuple[Letter, int]:
    """The dead letter that is meant, and how many there are in its queue.

    Raises:
        TopologyError: there is none.
    """
    queue = await broker.one_queue(args.queue)
    chosen = _filter_of(args)
    found, passed = None, 0
    count = args.position if chosen.is_empty else None
    async with Walk(
        broker.link, queue, count=count, user=broker.user, timeout=broker.timeout
    ) as walk:
        async for delivery in walk:
            letter = Letter.of(delivery, queue, walk.seen)
            passed += chosen.accepts(letter, time.time())
            await walk.keep(delivery)
            if passed == args.position:
                found = letter
                break
    if found is None:
        meant = "messages" if chosen.is_empty else "messages that are meant"
        raise TopologyError(
            f'queue "{queue}": no message number {args.position}: it has {passed} {meant} ({walk.seen} looked at).'
        )
    return found, walk.total


async def _show(args: argparse.Namespace, broker: _Broker) -> int:
    letter, total = await _find(args, broker)
    if args.json:
        print(as_json(of_letter(letter)))
    else:
        print_letter(letter, total)
    return 0


async def _edit(args: argparse.Namespace, broker: _Broker) -> int:
    changes = [_change_of(text) for text in args.set]
    letter, _ = await _find(args, broker)
    router = _router_of(args, broker)
    await router.check()
    route = await router.route(letter)
    if isinstance(route, Stranded):
        print(
            f"mycelia dlq: it cannot be sent: {route.why}. Send it elsewhere: --to QUEUE, --to-exchange, or --unattended.",
            file=sys.stderr,
        )
        return 1
    payload = Payload.of(letter.body, letter.properties)
    if args.body is not None:
        text = sys.stdin.read() if args.body == "-" else args.body
    elif changes:
        text = with_changes(payload, changes)
    else:
        text = await asyncio.to_thread(_edited, payload)
        if text == payload.text:
            print(
                "mycelia dlq: nothing was changed, so nothing was sent. As it is, redrive sends it.",
                file=sys.stderr,
            )
            return 1
    body, properties = changed_payload(text, letter.properties)
    await send_changed(
        broker.link,
        letter,
        route,
        body,
        properties,
        user=broker.user,
        timeout=broker.timeout,
        **broker.traced,
    )
    if args.json:
        print(as_json({"sent_to": str(route), "message_id": letter.message_id}))
    else:
        print(f"sent to {route}")
    return 0


def _change_of(text: str) -> tuple[str, Any]:
    path, separator, value = text.partition("=")
    try:
        if not separator:
            raise ValueError
        return path, msgspec.json.decode(value)
    except (ValueError, msgspec.DecodeError):
        raise ConfigError(
            f"--set {text!r:.80}: expected PATH=JSON. Text needs quotes: --set name='\"text\"'"
        ) from None


def _edited(payload: Payload) -> str:
    """The payload's text as the user's editor leaves it. Blocks.

    Raises:
        ConfigError: it cannot be edited, or the editor fails.
    """
    if payload.form == "base64":
        raise ConfigError(
            "the payload is no text that an editor could show: replace it with --body."
        )
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    suffix = ".json" if payload.form == "json" else ".txt"
    handle, path = tempfile.mkstemp(prefix="mycelia-dlq-", suffix=suffix)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(payload.text)
        try:
            status = subprocess.run([*shlex.split(editor), path], check=False).returncode
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"the editor {editor!r} does not start: {exc}. Set EDITOR, or use --set or --body."
            ) from None
        if status:
            raise ConfigError(f"the editor ended with {status}: nothing was sent.")
        with open(path, encoding="utf-8") as file:
            text = file.read()
    finally:
        os.unlink(path)
    # Editors end the last line.
    return text if payload.text.endswith("\n") else text.removesuffix("\n")


# --- redrive and purge ----------------------------------------------------------------------------------


async def _redrive(args: argparse.Namespace, broker: _Broker) -> int:
    reports = []
    left = args.limit
    for queue in await broker.queues(args.queues):
        with Progress("would be sent" if args.dry_run else "sent") as progress:
            report = await redrive(
                broker.link,
                queue.name,
                _router_of(args, broker),
                _filter_of(args),
                limit=left,
                rate=args.rate,
                dry_run=args.dry_run,
                user=broker.user,
                timeout=broker.timeout,
                on_progress=progress.tell,
                **broker.traced,
            )
        reports.append(report)
        if not args.json:
            print_report(report, "would be sent" if args.dry_run else "sent")
        if left is not None:
            left -= report.destinations.total()
        if report.error is not None or left == 0:
            break
    if args.json:
        print(as_json([of_report(report, args.dry_run) for report in reports]))
    return 0 if all(report.is_complete for report in reports) else 1


async def _purge(args: argparse.Namespace, broker: _Broker) -> int:
    chosen = _filter_of(args)
    queues = await broker.queues(args.queues)
    if not args.yes and not await _confirm(queues, chosen):
        return 2
    reports = []
    for queue in queues:
        with Progress("thrown away") as progress:
            report = await purge(
                broker.link,
                queue.name,
                chosen,
                foreign_too=args.foreign,
                user=broker.user,
                timeout=broker.timeout,
                on_progress=progress.tell,
            )
        reports.append(report)
        if not args.json:
            print_report(report, "thrown away")
    if args.json:
        print(as_json([of_report(report) for report in reports]))
    return 0 if all(report.is_complete for report in reports) else 1


async def _confirm(queues: list[DeadLetterQueue], chosen: LetterFilter) -> bool:
    """Ask on the terminal. False without one, and for any answer but a yes."""
    which = "all messages" if chosen.is_empty else "the messages that are meant"
    asked = f"Throw away {which} of " + ", ".join(
        f"{queue.name} ({queue.messages} there)" for queue in queues
    )
    return await confirm(f"{asked}? They cannot be had back.")
