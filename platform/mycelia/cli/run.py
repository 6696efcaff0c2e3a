"""Run services until a signal: what `nameko run` becomes after the hand-over, and `mycelia run`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from mycelia.cli.failures import FailedImport, describe_failure
from mycelia.cli.leaving import ExitLimit, end_children
from mycelia.cli.loading import load_services
from mycelia.cli.member import Member
from mycelia.cli.processes import Processes, changes_of, refuse_memory
from mycelia.cli.signals import Signals, Step
from mycelia.errors import MyceliaError
from mycelia.handover import take_over_path
from mycelia.log_event import event
from mycelia.providers import configure_logging, follow_log_level
from mycelia.providers.call_fields import of_process
from mycelia.providers.metrics import join_measured, measured_together
from mycelia.runtime import LoopWatch, Runner, Settings, load_config
from mycelia.runtime.settings import DEFAULT_BROKER

__all__ = ["add_run_arguments", "event_loop_factory", "read_config", "run_command"]

log = logging.getLogger("mycelia.cli")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `nameko run`, with their meaning."""
    parser.add_argument(
        "services",
        nargs="+",
        metavar="module[:Class]",
        help="a Python module with services, or one class of it",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file, with ${VAR:default} from the environment"
    )
    parser.add_argument(
        "--broker",
        metavar="URI",
        help=f"the broker's URI; --config overrides it (default: {DEFAULT_BROKER})",
    )
    parser.add_argument(
        "--backdoor-port",
        type=int,
        metavar="PORT",
        help="serve a Python console on localhost:PORT (`runner` is in scope)",
    )
    parser.add_argument(
        "--processes",
        type=_count,
        metavar="N",
        help="run N processes with the same services (default: mycelia.processes of --config, else 1)",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="start anew when a Python or YAML file below this folder changes; for development",
    )


def _count(text: str) -> int:
    """A number of processes, as argparse wants it read."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def read_config(config_file: str | None, broker: str | None) -> dict[str, Any]:
    """As `nameko run` does: the file if there is one, else only the broker."""
    if config_file is not None:
        return load_config(config_file)
    return {"AMQP_URI": broker or os.environ.get("AMQP_URI") or DEFAULT_BROKER}


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's event loop where it is installed; asyncio's with `MYCELIA_LOOP=asyncio`."""
    if os.environ.get("MYCELIA_LOOP", "uvloop") == "uvloop":
        try:
            import uvloop
        except ImportError:
            pass
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


def run_command(args: argparse.Namespace) -> int:
    """Run services until SIGTERM or Ctrl-C. Returns the exit code; problems are one clear line on stderr."""
    member = Member.take()
    take_over_path()
    if member is not None:
        of_process["process"] = member.number
        join_measured(member.number)
        member.hold_on()
    try:
        config = read_config(args.config, args.broker)
        configure_logging(config)
        processes = args.processes or Settings.from_config(config).mycelia.processes
        if member is None and (processes > 1 or args.reload):
            return _run_processes(args, config, processes)
        if processes > 1:  # who listens somewhere shares the address
            config["mycelia"] = {**(config.get("mycelia") or {}), "processes": processes}
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        services = load_services(args.services)
        loop_runner = asyncio.Runner(loop_factory=event_loop_factory())
        try:
            return loop_runner.run(_serve(config, services, args.backdoor_port, member))
        finally:
            end_children()
            with ExitLimit(0 if sys.exc_info()[0] is None else 1):
                loop_runner.close()
    except FailedImport as exc:
        print(describe_failure(str(exc), exc.error), file=sys.stderr)
        return 1
    except MyceliaError as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before anything ran
        return 130
    except Exception as exc:  # noqa: BLE001  of an extension, or of what the services are made with
        print(describe_failure("the services do not run", exc), file=sys.stderr)
        return 1


def _run_processes(args: argparse.Namespace, config: dict[str, Any], count: int) -> int:
    if count > 1:
        refuse_memory(str(config.get("AMQP_URI", "")), count)
    arguments = [*args.services, "--processes", str(count)]
    if args.config is not None:
        arguments += ["--config", args.config]
    if args.broker is not None:
        arguments += ["--broker", args.broker]
    of_one = [] if args.backdoor_port is None else ["--backdoor-port", str(args.backdoor_port)]
    changes = None
    if args.reload:
        changes = changes_of(".", *([] if args.config is None else [args.config]))
    processes = Processes(arguments, count, of_one, measured_together(config, count))
    return asyncio.run(processes.run(changes))


async def _serve(
    config: dict[str, Any], services: list[type], backdoor_port: int | None, member: Member | None
) -> int:
    runner = Runner(config, services)
    runner.host.on_change(follow_log_level)
    stopper = _Stopper(runner)
    with (
        Signals(stopper.on_step),
        LoopWatch(runner.host.settings.mycelia.loop_blocked_after),
    ):
        async with _backdoor(backdoor_port, runner):
            if await stopper.start():
                _spare_the_collector()
                _share_the_interpreter()
                if member is None:
                    log.info(event("ready", services=",".join(runner.service_names)))
                else:  # that all are is said by the first process
                    member.tell_started(runner.service_names)
                await runner.wait()
            await stopper.finish()
    return 0


def _backdoor(port: int | None, runner: Runner) -> AbstractAsyncContextManager[Any]:
    if port is None:
        return nullcontext()
    from mycelia.cli.backdoor import Backdoor  # a console is no part of most starts

    return Backdoor(port, {"runner": runner})


def _spare_the_collector() -> None:
    """Keep what the start has made out of garbage collection, and collect the young less often.

    A service holds some hundred thousand objects for life (modules, classes, schemas); a full collection that walks
    them stops the loop for tens of milliseconds. Messages leave few cycles behind. There is none now either: it would cost
    a fortieth of the start to find 60 objects in 32,526.
    """
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _share_the_interpreter() -> None:
    """Let a thread that wants the interpreter's lock have it after 1 ms, not 5.

    The loop, the workers of `def` methods, the engine of a flow and whoever writes its state take turns by it: 5 ms are waited each time that a
    call into C comes back while another thread computes.
    """
    sys.setswitchinterval(0.001)


class _Stopper:
    """Stops the services as signals ask for. A start that has not ended is given up; what runs by then may finish."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._starting: asyncio.Task[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()
        self._was_asked = False

    async def start(self) -> bool:
        """Start the services. False when a signal came first."""
        self._starting = asyncio.create_task(self._runner.start(), name="mycelia:start")
        try:
            await self._starting
        except asyncio.CancelledError:
            if self._was_asked:
                return False
            raise
        finally:
            self._starting = None
        if self._was_asked:  # the signal came when the start had just ended
            await self._runner.stop()
            return False
        return True

    async def finish(self) -> None:
        """Wait for what the signals began."""
        await asyncio.gather(*self._stopping)

    def on_step(self, step: Step, name: str) -> None:
        """Take a step for the signal `name`."""
        self._was_asked = True
        if step is Step.STOP and self._starting is not None:
            log.info(event("stopping", signal=name, detail="the start is given up"))
            self._starting.cancel()
        elif step is Step.STOP:
            log.info(event("stopping", signal=name, detail="a second signal kills"))
            self._spawn(self._runner.stop())
        else:
            log.warning(event("killing", signal=name, detail="unfinished work is requeued"))
            self._spawn(self._runner.kill())

    def _spawn(self, action: Any) -> None:
        self._stopping.add(asyncio.ensure_future(action))
