"""What users need to test their services: whole services in a test, waiting without sleeping, a network that breaks on command."""

from mycelia.broker.node import PrivateNode
from mycelia.testing import faults
from mycelia.testing.dead_letter_box import TakenLetter, take_dead_letters
from mycelia.testing.driven_clock import DrivenClock
from mycelia.testing.entrypoints import (
    EntrypointWaiterTimeout,
    WaitResult,
    entrypoint_hook,
    entrypoint_waiter,
)
from mycelia.testing.eventually import eventually
from mycelia.testing.flow_driver import DrivenRecord, FlowDriver
from mycelia.testing.replacing import (
    make_worker,
    replace_dependencies,
    restrict_entrypoints,
    worker_factory,
)
from mycelia.testing.services import ServiceBed, run_services
from mycelia.testing.span_receiver import ReceivedSpan, SpanReceiver
from mycelia.testing.tcp_proxy import Fault, TcpProxy

__all__ = [
    "DrivenClock",
    "DrivenRecord",
    "EntrypointWaiterTimeout",
    "Fault",
    "FlowDriver",
    "PrivateNode",
    "ReceivedSpan",
    "ServiceBed",
    "SpanReceiver",
    "TakenLetter",
    "TcpProxy",
    "WaitResult",
    "entrypoint_hook",
    "entrypoint_waiter",
    "eventually",
    "faults",
    "make_worker",
    "replace_dependencies",
    "restrict_entrypoints",
    "run_services",
    "take_dead_letters",
    "worker_factory",
]
