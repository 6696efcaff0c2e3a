"""Where results go beside logs and events.

sink         what a sink is
sql_table    rows of a table, each batch once
files        JSON lines and Parquet, committed with the checkpoint
rpc_calls    calls of a service's method
http_posts   POST
broadcast    whoever looks on in this process: server-sent events
"""
