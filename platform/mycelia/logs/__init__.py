"""Partitioned logs of record batches on RabbitMQ's streams.

record          a record, as readers get it
partitioning    which partition a key belongs to
value_codec     values ⇄ msgpack, by the log's type
batch_format    records ⇄ an entry of a log: properties and body
sequences       which entries are repetitions
"""

from mycelia.logs.partitioning import partition_of
from mycelia.logs.record import FaultyRecord, Record, RecordHeaders, RecordKey

__all__ = ["FaultyRecord", "Record", "RecordHeaders", "RecordKey", "partition_of"]
