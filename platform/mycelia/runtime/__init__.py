"""The runtime: containers, workers, life cycle, and the hand-over from `nameko run`."""

from mycelia.runtime.adaptive_prefetch import MAX_PREFETCH, AdaptivePrefetch
from mycelia.runtime.config_file import load_config, parse_config
from mycelia.runtime.container import Container
from mycelia.runtime.declarations import find_entrypoints, register_foreign_declarations
from mycelia.runtime.decorators import bare_decorator_of, decorator_of
from mycelia.runtime.dependencies import DependencyProvider, SharedDependency
from mycelia.runtime.extensions import (
    BoundTo,
    Entrypoint,
    EntrypointArguments,
    Extension,
    SharedExtension,
    register_entrypoint,
)
from mycelia.runtime.host import Host
from mycelia.runtime.keyed_lane import KeyedLane, KeyOrder
from mycelia.runtime.lane import Lane, LaneStatistics
from mycelia.runtime.loop_watch import LoopWatch
from mycelia.runtime.process_parts import (
    Phase,
    ProcessPart,
    RunningProcess,
    register_process_part,
)
from mycelia.runtime.runner import Runner
from mycelia.runtime.service_time import ServiceTime
from mycelia.runtime.settings import Settings
from mycelia.runtime.signature import SignatureCheck
from mycelia.runtime.statistics import HostStatistics, ServiceStatistics
from mycelia.runtime.threads import ThreadStatistics
from mycelia.runtime.worker_context import WorkerContext

__all__ = [
    "MAX_PREFETCH",
    "AdaptivePrefetch",
    "BoundTo",
    "Container",
    "DependencyProvider",
    "Entrypoint",
    "EntrypointArguments",
    "Extension",
    "Host",
    "HostStatistics",
    "KeyOrder",
    "KeyedLane",
    "Lane",
    "LaneStatistics",
    "LoopWatch",
    "Phase",
    "ProcessPart",
    "Runner",
    "RunningProcess",
    "ServiceStatistics",
    "ServiceTime",
    "Settings",
    "SharedDependency",
    "SharedExtension",
    "SignatureCheck",
    "ThreadStatistics",
    "WorkerContext",
    "bare_decorator_of",
    "decorator_of",
    "find_entrypoints",
    "load_config",
    "parse_config",
    "register_entrypoint",
    "register_foreign_declarations",
    "register_process_part",
]
