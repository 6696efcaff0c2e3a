"""Flows: windows, joins and patterns over what happens, kept through restarts and kills.

nameko run --config services/config.yaml services.flights.flows
mycelia log tail flights.hourly --from first      # what they give
"""

from __future__ import annotations

from mycelia import rpc
from mycelia.flow import FlowOutput, FlowPlan, Stream, flow, source
from mycelia.flow.graph_svg import graph_svg
from services.flights.delay_flows import aircraft_days, alerts, hourly, notable, scheduled, seats
from services.flights.records import (
    AIRCRAFT_DAYS,
    ALERTS,
    HAPPENED,
    HOURLY,
    NOTABLE,
    OBSERVED,
    PLANES,
    SEATS,
    Happening,
    Observation,
    PlaneRow,
)

__all__ = ["Flows"]


class Flows:
    """Makes of what happened the figures of each hour, the days of each aircraft, and alerts."""

    name = "flows"

    @flow(HAPPENED, OBSERVED, PLANES, commit_every="50ms", on_error="dead-letter")
    def delays(
        self, happened: Stream[Happening], observed: Stream[Observation], planes: Stream[PlaneRow]
    ) -> tuple[FlowOutput, ...]:
        """All of them over one reading of the log."""
        flights = scheduled(happened)
        alerted = alerts(happened)
        return (
            hourly(flights, observed).to(HOURLY),
            seats(flights, planes).to(SEATS),
            aircraft_days(flights).to(AIRCRAFT_DAYS),
            notable(flights).to(NOTABLE),
            alerted.to(ALERTS),
            alerted.emit("alert"),
        )

    @rpc
    async def drawing(self) -> str:
        """The flow as SVG."""
        happened = source(HAPPENED.name, Happening)
        observed, planes = source(OBSERVED.name, Observation), source(PLANES.name, PlaneRow)
        outputs = self.delays(happened, observed, planes)
        plan = FlowPlan({one.name: one.port for one in outputs})
        return graph_svg(plan.graph(), "flows.delays")
