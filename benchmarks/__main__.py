"""All questions in one run: `python -m benchmarks` (`make bench`)."""

from benchmarks import events, rpc, startup
from benchmarks.command import main

main(rpc=rpc.question, events=events.question, startup=startup.question)
