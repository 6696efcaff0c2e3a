"""Flows: typed pipelines over event time, with windows, state and joins.

A flow is described with `source()` and the methods of `Stream`, checked and drawn as a `FlowPlan`, and run by an `Engine` on
whole batches of records: the core, without I/O, clock or broker.
  stream          what a flow is written with
  step_nodes      what becomes of its steps in the graph (pure)
  graph           the graph, checked and drawn (pure)
  operators, state
                  what runs in a step, and what it keeps by key (pure)
  engine          runs the operators (pure)

Where keys change, a flow is cut into stages:
  key_names       whether two key functions give the same key (pure)
  cuts            where it has to be cut (pure)
  stages          the parts of a plan that is cut (pure)

In a service, over logs and with durable state:
  outputs         where what leaves goes to
  sinks/          … that is no log and no event: tables, files, calls, POST, whoever looks on
  delivery        brings them what lies in the outbox
  outgoing        what leaves, as messages with ids (pure)
  relay_log       what goes from stage to stage (pure)
  ahead, next_stages
                  how far a stage may be ahead of the next one (the first pure)
  asked_state     what steps know of a key, to be asked for (pure)
  staging         a flow as stages, with the logs between them
  partition_state, state_file
                  state, positions and outbox of a partition: what is asked of a place for them, and SQLite as one
  sources/        what is read that is no log: queues, tables, the clock, iterators
  inflow          the sources of a partition, read in turn
  partition_run   an engine over such a state
  stage           the partitions of a stage, shared and run
  flow_handler    `@flow`
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
from mycelia.flow.flow_decorator import flow
from mycelia.flow.flow_handler import FlowHandler
from mycelia.flow.flow_statistics import FlowStatistics, StageStatistics
from mycelia.flow.graph import FlowPlan
from mycelia.flow.outputs import FlowOutput
from mycelia.flow.processing import KeyContext
from mycelia.flow.results import LateRecord, OpenWindow, WindowResult, WindowSpan
from mycelia.flow.sinks.broadcast import Broadcast
from mycelia.flow.sinks.files import FileSink, json_lines, parquet_files
from mycelia.flow.sinks.sink import FlowSink, SinkRecord, SinkRefused, SinkWriter
from mycelia.flow.sinks.sql_table import SqlTable, sql_table
from mycelia.flow.sources.events import QueueSource, events, queue
from mycelia.flow.sources.iterators import iterator, ticks
from mycelia.flow.sources.pulled import PulledSource
from mycelia.flow.sources.sql_changes import sql_changes
from mycelia.flow.stage_host import PartitionCommit
from mycelia.flow.stages import stages_of
from mycelia.flow.state import Changes, MemoryStore, StateStore, StoreReader
from mycelia.flow.stream import (
    JoinedStream,
    KeyedStream,
    PatternStream,
    ProcessedStream,
    Stream,
    WindowedResults,
    WindowedStream,
    source,
)
from mycelia.flow.windows import counting, hopping, session, sliding, tumbling

__all__ = [
    "Aggregation",
    "Broadcast",
    "Changes",
    "Engine",
    "FileSink",
    "FlowHandler",
    "FlowOutput",
    "FlowPlan",
    "FlowSink",
    "FlowStatistics",
    "Given",
    "JoinedStream",
    "KeyContext",
    "KeyedStream",
    "LateRecord",
    "MemoryStore",
    "OpenWindow",
    "PartitionCommit",
    "PatternStream",
    "ProcessedStream",
    "PulledSource",
    "QueueSource",
    "RejectedRecord",
    "SinkRecord",
    "SinkRefused",
    "SinkWriter",
    "SqlTable",
    "StageStatistics",
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
    "events",
    "every",
    "first",
    "flow",
    "hopping",
    "iterator",
    "json_lines",
    "last",
    "max_of",
    "mean",
    "min_of",
    "parquet_files",
    "quantile",
    "queue",
    "session",
    "sliding",
    "source",
    "sql_changes",
    "sql_table",
    "stages_of",
    "sum_of",
    "ticks",
    "together",
    "top",
    "tumbling",
]
