"""How many of the platform's functions one RPC passes, from the socket to its acknowledgement: `python -m benchmarks.trace`.

With `--layers` also with metrics, an access log that writes one line in a hundred, and tracing that keeps no trace: what most
calls of a service in production pass. Those of OpenTelemetry's are counted too.

A count, not a time: it says where the code is roundabout, on any machine. Every Python call in the service's event loop is
counted (what C does is not, nor what runs in a worker's thread), for one request after thirty others. `--list` prints them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from types import FrameType
from typing import Any

from benchmarks.broker import find_broker
from mycelia import Runner, rpc

CLIENT = """
import asyncio, sys
from mycelia import Client

async def main(uri, method):
    async with Client(uri, timeout=10) as client:
        for _ in range(30):
            await client.call("traced", method, 1)
        print("warm", flush=True)
        sys.stdin.readline()
        await client.call("traced", method, 1)

asyncio.run(main(*sys.argv[1:]))
"""


LAYERS: dict[str, dict[str, Any]] = {
    "": {},
    " metrics": {"metrics": {"port": 0}},
    " access log": {"access_log": {"sample": 0.0}},
    " tracing": {"tracing": {"exporter": "none", "sample": 0.0}},
    " all": {
        "metrics": {"port": 0},
        "access_log": {"sample": 0.0},
        "tracing": {"exporter": "none", "sample": 0.0},
    },
}


class Traced:
    name = "traced"

    @rpc
    async def on_loop(self, value: Any) -> Any:
        return value

    @rpc
    def in_thread(self, value: Any) -> Any:
        return value


async def trace(uri: str, method: str) -> list[str]:
    """The functions that one request passes, as `module:name`, in the order of their calls."""
    calls: list[str] = []

    def on_event(frame: FrameType, what: str, arg: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if what == "call" and module.startswith(("mycelia.", "opentelemetry.")):
            calls.append(f"{module.removeprefix('mycelia.')}:{frame.f_code.co_qualname}")

    arguments = (sys.executable, "-c", CLIENT, uri, method)
    pipe = asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe)
    assert client.stdin is not None
    assert client.stdout is not None
    await client.stdout.readline()
    await asyncio.sleep(
        0.5
    )  # what the thirty have left behind is done: marks, acknowledgements, the watch
    sys.setprofile(on_event)
    try:
        client.stdin.write(b"\n")
        await client.wait()
    finally:
        sys.setprofile(None)
    return _until_acknowledged(calls)


def _until_acknowledged(calls: list[str]) -> list[str]:
    first = next(n for n, call in enumerate(calls) if call.endswith(".data_received"))
    told = next(n for n, call in enumerate(calls) if call.endswith("Intake.write_settlements"))
    written = next(n for n in range(told, len(calls)) if calls[n].endswith("._write_out"))
    return calls[first : written + 1]


async def main(uri: str, layer: str, is_listing: bool) -> None:
    async with Runner({"AMQP_URI": uri, "mycelia": LAYERS[layer]}, [Traced]):
        for method in ("on_loop", "in_thread"):
            calls = await trace(uri, method)
            modules = [call.partition(":")[0] for call in calls]
            switches = sum(one != other for one, other in itertools.pairwise(modules))
            print(
                f"{method}{layer}: {len(calls)} calls, {len(set(calls))} functions, {len(set(modules))} modules, "
                f"{switches} switches between modules"
            )
            if is_listing:
                print(*(f"  {call}" for call in calls), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trace", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the calls")
    parser.add_argument("--layers", action="store_true", help="also with each part of the layer")
    parser.add_argument("--uri", help="the broker (default: AMQP_URI, else a private node)")
    given = parser.parse_args()
    with find_broker(given.uri) as broker:
        for layer in LAYERS if given.layers else [""]:
            asyncio.run(main(broker.uri, layer, given.list))
