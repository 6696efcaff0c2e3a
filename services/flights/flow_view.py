"""The flow as it runs, drawn for the page."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from mycelia import SharedDependency
from mycelia.control.flows import FlowAsker
from mycelia.errors import LinkError
from mycelia.flow.graph_svg import graph_svg
from mycelia.flow.standing import flow_notes, rate_text
from mycelia.runtime import Container

__all__ = ["FlowView"]

FRESH_S: Final = 2.0
"""A drawing is given to all who ask within so many seconds: each asks the flows and the broker."""

_NO_FLOW: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="260" height="30"><text x="8" y="20" fill="#818b98" '
    'font-family="sans-serif" font-size="13">The service flows does not answer.</text></svg>'
)


class FlowView(SharedDependency):
    """Draws a flow with its rates, watermarks and lag: the instances are asked, over the broker, as `mycelia flow graph` does it.

    Args:
        flow: `service.method`.
        clock: the step whose watermark is the time by which the others are said to be behind or ahead. What is replayed
            has nothing to do with the clock on the wall.
    """

    container: Container

    def __init__(self, flow: str, *, clock: str) -> None:
        self._flow = flow
        self._clock = clock
        self._asker: FlowAsker | None = None
        self._drawn = _NO_FLOW
        self._drawn_at = -FRESH_S
        self._lock = asyncio.Lock()

    async def svg(self) -> str:
        """The drawing; a word in its place where nobody answers."""
        async with self._lock:
            if time.monotonic() - self._drawn_at >= FRESH_S:
                try:
                    self._drawn = await self._draw()
                except LinkError:
                    self._drawn = _NO_FLOW
                self._drawn_at = time.monotonic()
            return self._drawn

    async def _draw(self) -> str:
        if self._asker is None:
            asker = FlowAsker(self.container.host.link)
            await asker.start(5.0)
            self._asker = asker
        await self._asker.ask()
        found = await self._asker.figures(self._flow)
        if not found:
            return _NO_FLOW
        now_ms = found[0].watermarks_ms.get(self._clock, int(time.time() * 1000))
        notes, flows = flow_notes(found[0], now_ms)
        title = self._flow
        if found[0].records_per_s is not None:
            title += f" · {rate_text(found[0].records_per_s)}"
        return graph_svg(found[0].graph, title, notes, flows)
