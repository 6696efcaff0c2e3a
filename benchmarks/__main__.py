"""All questions in one run: `python -m benchmarks` (`make bench`)."""

from benchmarks.command import main

main("rpc", "events", "startup")
