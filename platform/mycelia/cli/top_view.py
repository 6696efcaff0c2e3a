"""How `mycelia top` shows figures: tables, on a terminal as a screen that changes, elsewhere as text."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mycelia.providers.metrics.figures import FleetFigures, InstanceFigures, MethodFigures

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Screen", "plain_text"]

TEXT_WIDTH = 160

NOBODY = (
    "No process answers. Those do whose configuration has the section `mycelia: metrics:` (it may be empty, `{}`), "
    "at this broker and virtual host."
)


def plain_text(figures: FleetFigures) -> str:
    """The tables as text, without colours."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=TEXT_WIDTH, color_system=None, force_terminal=False)
    console.print(_all(figures, TEXT_WIDTH))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


class Screen:
    """A terminal's screen for as long as it is open, which is as it was afterwards."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        # Redrawn when there is something new, by this thread: nothing else is to write to the terminal.
        self._console = Console()
        self._live = Live(console=self._console, screen=True, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.__exit__(exc_type, exc, traceback)

    def show(self, figures: FleetFigures, state: str) -> None:
        """Show `figures`, and how the link to the broker is."""
        self._live.update(_all(figures, self._console.width, state), refresh=True)


def _all(figures: FleetFigures, width: int, state: str = "connected") -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    if not figures.instances:
        return Text(NOBODY if state == "connected" else f"broker: {state}", style="yellow")
    parts: list[Any] = [_headline(figures, state), _methods(figures, width), _queues(figures)]
    unready = [one for one in figures.instances if not one.ready]
    parts += [
        Text(f"{_name(one)} is not ready: {'; '.join(one.not_ready)}", style="red")
        for one in unready[:10]
    ]
    return Group(*parts)


def _headline(figures: FleetFigures, state: str) -> Any:
    from rich.text import Text

    instances = figures.instances
    services = sorted({service for one in instances for service in one.services})
    rate = sum(method.calls_per_s or 0.0 for method in figures.methods)
    dead = sum(figures.dead_letters.values())
    text = Text.assemble(
        (f"{len(instances)} {'process' if len(instances) == 1 else 'processes'}", "bold"),
        f", {len(services)} services ({', '.join(services)})  ",
        (f"{rate:,.1f} calls/s  ", "bold green"),
        (f"{dead} dead letters", "bold red" if dead else "dim"),
    )
    if state != "connected":
        text.append(f"  broker: {state}", "bold red")
    return text


COLUMNS: tuple[tuple[str, int, Callable[[MethodFigures], str]], ...] = (
    ("kind", 3, lambda method: method.kind),
    ("calls/s", 0, lambda method: _rate(method.calls_per_s)),
    ("err/s", 0, lambda method: _rate(method.errors_per_s)),
    ("retry/s", 1, lambda method: _rate(method.retries_per_s)),
    ("p50", 0, lambda method: _time(method.p50_s)),
    ("p99", 0, lambda method: _time(method.p99_s)),
    ("running", 1, lambda method: str(method.in_flight)),
    ("waiting", 0, lambda method: str(method.waiting)),
    ("calls", 2, lambda method: f"{method.calls:,}"),
    ("errors", 2, lambda method: f"{method.errors:,}"),
)
"""Beside the method's name: title, from which width on it is shown (`WIDTHS`), text."""

WIDTHS = (0, 90, 110, 120)
"""Columns of a terminal, by what is shown from there on."""


def _methods(figures: FleetFigures, width: int) -> Any:
    from rich import box
    from rich.table import Table

    shown = [column for column in COLUMNS if width >= WIDTHS[column[1]]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", overflow="fold", min_width=20)
    for title, _, _ in shown:
        table.add_column(title, justify="left" if title == "kind" else "right", no_wrap=True)
    for method in sorted(figures.methods, key=_by_rate):
        if method.method == "*" and not method.calls:
            continue  # requests for methods that do not exist: there are none
        cells = [told(method) for _, _, told in shown]
        style = "red" if method.errors_per_s else None
        table.add_row(f"{method.service}.{method.method}", *cells, style=style)
    return table


def _by_rate(method: MethodFigures) -> tuple[float, str, str]:
    return -(method.calls_per_s or 0.0), method.service, method.method


def _queues(figures: FleetFigures) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("queue", overflow="fold")
    for name in ("ready", "unsettled", "consumers"):
        table.add_column(name, justify="right", no_wrap=True)
    for queue in figures.queues:
        consumers = str(queue.consumers)
        if queue.paused:
            consumers += f" ({queue.paused} paused)"
        table.add_row(
            queue.queue,
            "-" if queue.ready is None else f"{queue.ready:,}",
            f"{queue.unsettled:,}",
            consumers,
            style="yellow" if not queue.consumers else None,
        )
    return table


def _name(one: InstanceFigures) -> str:
    return f"{','.join(one.services)} at {one.host}:{one.pid}"


def _rate(per_s: float | None) -> str:
    if per_s is None:
        return "-"
    return f"{per_s:,.1f}" if per_s else "0"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s"
