"""A service with extensions from PyPI, twice: on stock Nameko and here; `test_packages.py` compares."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Any

from nameko.timer import timer
from nameko_amqp_retry import Backoff, entrypoint_retry
from nameko_amqp_retry.events import event_handler
from nameko_amqp_retry.rpc import rpc
from nameko_cachetools import CacheFirstRpcProxy
from nameko_eventlog_dispatcher import EventLogDispatcher
from nameko_prometheus import PrometheusMetrics
from nameko_statsd import StatsD
from nameko_structlog import StructlogDependency
from nameko_tracer import Tracer
from prometheus_client import generate_latest

side = os.environ["SIDE"]


class Soon(Backoff):  # type: ignore[misc]  # the package has no types
    schedule = (50,)
    random_sigma = 0
    limit = 3


class Datagrams:
    """What a StatsD server would get."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(5)


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)


datagrams = Datagrams()
records = Records()
logging.getLogger("nameko_tracer").addHandler(records)
logging.getLogger("nameko_tracer").setLevel(logging.INFO)
logged: list[Any] = []
tries: dict[str, int] = {}


def tried(what: str) -> int:
    tries[what] = tries.get(what, 0) + 1
    return tries[what]


class LocalStatsD(StatsD):  # type: ignore[misc]
    def setup(self) -> None:
        super().setup()
        self.config["port"] = datagrams.socket.getsockname()[1]


class Packaged:
    name = f"packaged_{side}"
    metrics = PrometheusMetrics()
    tracer = Tracer()
    cached = CacheFirstRpcProxy(name)
    log_event = EventLogDispatcher()
    statsd = LocalStatsD("main")
    log = StructlogDependency()

    @rpc
    def third_time(self, what: str = "rpc") -> int:
        if tried(what) < 3:
            raise Soon
        return tries[what]

    @rpc
    def never(self) -> None:
        raise Soon

    @rpc
    @entrypoint_retry(retry_for=ValueError, limit=2, schedule=(50,), random_sigma=0)
    def never_by_decorator(self) -> None:
        raise ValueError("no")

    @event_handler(f"packaged_{side}", "log_event")
    def on_log(self, payload: Any) -> None:
        if tried(payload["event_type"]) < 3:
            raise Soon
        logged.append([payload["event_type"], payload["data"], payload["entrypoint_name"]])

    @rpc
    def log_something(self) -> None:
        self.log.info("something")
        self.log_event("something", {"a": 1})

    @rpc
    def get_logged(self) -> Any:
        return logged

    @rpc
    def count(self, key: str) -> int:
        return tried(f"count {key}")

    @rpc
    def count_cached(self) -> list[int]:
        return [self.cached.count("a"), self.cached.count("a"), self.cached.count("b")]

    @rpc
    @statsd.timer("timed")
    def measured(self) -> None:
        self.statsd.incr("counted")

    @rpc
    def get_measured(self) -> list[str]:
        return [datagrams.socket.recv(100).decode().partition(":")[0] for _ in range(2)]

    @rpc(sensitive_arguments="secret")
    def traced(self, plain: int, secret: int) -> int:
        return plain

    @rpc
    def get_traced(self) -> list[Any]:
        return [
            [trace["stage"], trace["call_args"], trace.get("response_status")]
            for trace in (
                record.nameko_trace for record in records.kept if hasattr(record, "nameko_trace")
            )
            if trace["entrypoint_name"] == "traced"
        ]

    @rpc
    def get_metrics(self) -> list[str]:
        wanted = ('rpc_requests_total{method_name="traced"}', "_running_workers ", "_max_workers ")
        deadline = time.monotonic() + 5
        while True:  # `worker_result` follows the reply, which the caller has by then
            lines = generate_latest().decode().splitlines()
            found = [line for line in lines if line[0] != "#" and any(w in line for w in wanted)]
            if len(found) == len(wanted) or time.monotonic() > deadline:
                return [line.replace(side, "") for line in found]
            time.sleep(0.05)

    @timer(interval=1000)
    def never_due(self) -> None: ...
