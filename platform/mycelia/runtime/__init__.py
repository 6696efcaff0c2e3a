"""The runtime: containers, workers, life cycle, and the hand-over from `nameko run`."""

import mycelia.runtime.bridge  # noqa: F401  it registers itself for extensions written for Nameko
from mycelia.runtime.config import load_config, parse_config
from mycelia.runtime.container import Container, find_entrypoints
from mycelia.runtime.counterparts import counterpart_of
from mycelia.runtime.extensions import (
    DependencyProvider,
    Entrypoint,
    Extension,
    SharedExtension,
    SignatureCheck,
    register_entrypoint,
)
from mycelia.runtime.lane import Lane
from mycelia.runtime.process import Process
from mycelia.runtime.runner import Runner
from mycelia.runtime.settings import Settings
from mycelia.runtime.worker import WorkerContext

__all__ = [
    "Container",
    "DependencyProvider",
    "Entrypoint",
    "Extension",
    "Lane",
    "Process",
    "Runner",
    "Settings",
    "SharedExtension",
    "SignatureCheck",
    "WorkerContext",
    "counterpart_of",
    "find_entrypoints",
    "load_config",
    "parse_config",
    "register_entrypoint",
]
