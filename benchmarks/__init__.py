"""Benchmarks: how fast Mycelia is beside what users would pick instead, on the same broker.

One module a question: `python -m benchmarks.rpc`, `benchmarks.events`, `benchmarks.startup`;
`python -m benchmarks` asks them all. README.md holds the rules of fairness and how to read it.
"""
