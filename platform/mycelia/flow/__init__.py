"""Flows: typed pipelines over event time, with windows, state and joins.

A flow is described with `source()` and the methods of `Stream`, checked and drawn as a `FlowPlan`, and run by an `Engine` on
whole batches of records: the core, without I/O, clock or broker.

In a service, over a log and with durable state:
  outputs         where what leaves goes to
  outgoing        what leaves, as messages with ids (pure)
  state_file      state, position and outbox of a partition, in SQLite
  partition_run   an engine over such a file
  flow_handler    `@flow`: partitions shared and run
"""

from mycelia.flow.aggregations import (
    Aggregation,
    aggregation,
    collect,
    count,
    distinct,
    first,
    last,
    max_of,
    mean,
    min_of,
    quantile,
    sum_of,
    together,
    top,
)
from mycelia.flow.emission import after, every
from mycelia.flow.engine import Engine, Given, RejectedRecord
from mycelia.flow.flow_handler import FlowHandler, FlowStatistics, flow
from mycelia.flow.graph import FlowPlan
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.processing import KeyContext
from mycelia.flow.results import LateRecord, WindowResult, WindowSpan
from mycelia.flow.stages import stages_of
from mycelia.flow.state import Changes, MemoryStore, StateStore, StoreReader
from mycelia.flow.stream import (
    JoinedStream,
    KeyedStream,
    PatternStream,
    Stream,
    WindowedResults,
    WindowedStream,
    source,
)
from mycelia.flow.windows import counting, hopping, session, sliding, tumbling

__all__ = [
    "Aggregation",
    "Changes",
    "Engine",
    "FlowHandler",
    "FlowOutput",
    "FlowPlan",
    "FlowStatistics",
    "Given",
    "JoinedStream",
    "KeyContext",
    "KeyedStream",
    "LateRecord",
    "MemoryStore",
    "PatternStream",
    "RejectedRecord",
    "StateStore",
    "StoreReader",
    "Stream",
    "WindowResult",
    "WindowSpan",
    "WindowedResults",
    "WindowedStream",
    "after",
    "aggregation",
    "collect",
    "count",
    "counting",
    "distinct",
    "every",
    "first",
    "flow",
    "hopping",
    "last",
    "max_of",
    "mean",
    "min_of",
    "quantile",
    "session",
    "sliding",
    "source",
    "stages_of",
    "sum_of",
    "together",
    "top",
    "tumbling",
]
