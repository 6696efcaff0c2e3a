"""What a flow reads beside logs. Each has one partition, and a position that is kept with the checkpoint.

single       what they have in common
pulled       what has a position of its own: the reader
iterators    any async iterator, and ticks
sql_changes  a table's new rows
events       queues of events and messages
"""
