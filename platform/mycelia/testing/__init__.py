"""What users need to test their services: whole services in a test, waiting without sleeping, a network that breaks on command."""

from mycelia.broker.node import PrivateNode
from mycelia.testing.eventually import eventually
from mycelia.testing.services import ServiceBed, make_worker, run_services
from mycelia.testing.tcp_proxy import Fault, TcpProxy

__all__ = [
    "Fault",
    "PrivateNode",
    "ServiceBed",
    "TcpProxy",
    "eventually",
    "make_worker",
    "run_services",
]
