"""The logs of the flows' benchmark over a broker, and the services that run over them."""

from __future__ import annotations

import msgspec

from mycelia import Log
from mycelia.flow import FlowOutput, Stream, count, flow, max_of, tumbling

__all__ = [
    "COUNTED",
    "HOPPED",
    "SOURCE",
    "Counting",
    "Hopping",
    "Reading",
    "Result",
    "Updating",
]


class Reading(msgspec.Struct, frozen=True):
    """A record of the source."""

    key: str
    at_ms: int
    value: int
    sent_at: float = 0.0
    """Seconds since 1970, where latency is measured."""


class Result(msgspec.Struct, frozen=True):
    """What comes out: of a window, or of a record."""

    key: str
    count: int
    sent_at: float = 0.0
    """Of the latest record in it."""


# One partition: what one core does is asked.
SOURCE: Log[Reading] = Log("bench.in", of=Reading, key="key", time="at_ms", partitions=1)
COUNTED: Log[Result] = Log("bench.out", of=Result, key="key", partitions=1)
HOPPED: Log[Result] = Log("bench.hopped", of=Result, key="key", partitions=1)


def _keyed(readings: Stream[Reading]) -> Stream[Reading]:
    return readings.event_time(lambda one: one.at_ms, unit="ms", disorder="1s")


class Counting:
    """Tumbling counts, as windows close."""

    name = "bench_counting"

    @flow(SOURCE)
    def counts(self, readings: Stream[Reading]) -> FlowOutput:
        return (
            _keyed(readings)
            .key_by("key")
            .window(tumbling("10s"))
            .aggregate(count())
            .map(lambda w: Result(w.key, w.value))
            .to(COUNTED)
        )


class Updating:
    """Tumbling counts, with each batch."""

    name = "bench_updating"

    @flow(SOURCE, commit_every="0s")
    def counts(self, readings: Stream[Reading]) -> FlowOutput:
        return (
            _keyed(readings)
            .key_by("key")
            .window(tumbling("10s"), emit="update")
            .aggregate(count(), max_of("sent_at"))
            .map(lambda w: Result(w.key, *w.value))
            .to(COUNTED)
        )


class Hopping:
    """A record for each record."""

    name = "bench_hopping"

    @flow(SOURCE)
    def hop(self, readings: Stream[Reading]) -> FlowOutput:
        return readings.map(lambda one: Result(one.key, one.value, one.sent_at)).to(HOPPED)
