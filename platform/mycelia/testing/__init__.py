"""What users need to test their services: waiting without sleeping, and a network that breaks on command."""

from mycelia.testing.eventually import eventually
from mycelia.testing.tcp_proxy import Fault, TcpProxy

__all__ = ["Fault", "TcpProxy", "eventually"]
