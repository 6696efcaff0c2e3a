"""What a result depends on: versions, machine, broker, the code measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.process import ROOT
from benchmarks.registry import Peer, go_library


def describe(broker_version: str, peers: Iterable[Peer]) -> dict[str, Any]:
    """The environment of a run, as it is written beside the results."""
    distributions = sorted({name for peer in peers for name in peer.distributions})
    return {
        "broker": broker_version,
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "go": _output("go", "version"),
        "amqp091-go": go_library(),
        "commit": commit(),
        "uncommitted_changes": bool(
            _output("git", "status", "--porcelain", "platform", "benchmarks")
        ),
        "versions": {name: _version(name) for name in distributions},
    }


def commit() -> str:
    """The short hash of the code measured."""
    return _output("git", "rev-parse", "--short", "HEAD") or "unknown"


def _output(program: str, *arguments: str) -> str | None:
    if shutil.which(program) is None:
        return None
    ran = subprocess.run(
        [program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    return ran.stdout.strip() if ran.returncode == 0 else None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
