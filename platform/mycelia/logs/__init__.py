"""Partitioned logs of record batches on RabbitMQ's streams.

Pure:
  record          a record, as readers get it
  partitioning    which partition a key belongs to
  record_shape    the type of a log's values, where key and time stand in one
  value_codec     values ⇄ msgpack, by the log's type
  batch_format    records ⇄ an entry of a log: properties and body
  sequences       which entries are repetitions
  position        where a reader stands
  open_batch      a batch that is being filled

  append_call     a batch that leaves, as middleware sees it

At the broker:
  layout          exchange and streams, declared
  writer          appends, in batches, confirmed
  reader          entries of a partition, each once
  stream_ends     where a stream begins and ends
  log             `Log`: the declaration in a service, and for programs

Handled in groups:
  lease_register  whose a partition is, and how far the group has come (pure)
  catching_up     how a group comes along on its way to the end (pure)
  log_diff        whether two logs say the same (pure)
  shares          how many partitions an instance takes and gives (pure)
  partition_lease, membership, log_handler
  group_places    how far groups have come, for people
"""

from mycelia.logs.append_call import AppendCall
from mycelia.logs.log import BlockingLogWriter, Log
from mycelia.logs.log_handler import LogCall, LogHandler
from mycelia.logs.log_handler_decorator import log_handler
from mycelia.logs.partitioning import partition_of
from mycelia.logs.position import LogPosition
from mycelia.logs.reader import LogEntry, LogReader
from mycelia.logs.record import FaultyRecord, Record, RecordHeaders, RecordKey
from mycelia.logs.writer import LogWriter

__all__ = [
    "AppendCall",
    "BlockingLogWriter",
    "FaultyRecord",
    "Log",
    "LogCall",
    "LogEntry",
    "LogHandler",
    "LogPosition",
    "LogReader",
    "LogWriter",
    "Record",
    "RecordHeaders",
    "RecordKey",
    "log_handler",
    "partition_of",
]
