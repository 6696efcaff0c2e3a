"""The peers: for each, the programs it serves and asks with. `benchmarks.registry` lists them.

Nothing is imported here, so that a serving process carries no part of the harness.
"""
