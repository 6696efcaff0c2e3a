"""One tree of errors, in the users' words.

    MyceliaError
    ├── ConfigError                the configuration names something that cannot be
    ├── LinkError                  between this process and the broker
    │   ├── BrokerUnavailable      no broker answered in time; try again later
    │   ├── BrokerBlocked          the broker has stopped taking publishings (memory or disk alarm)
    │   ├── AccessRefused          user, password or virtual host are wrong; trying again is no use
    │   ├── PublishRejected        the broker said no to a publishing (basic.nack)
    │   ├── Unroutable             no queue is bound for the message (basic.return)
    │   ├── TopologyError          a declaration is refused for good
    │   └── ProtocolError          bytes that are not AMQP 0-9-1
    ├── CallError                  a call to another service
    │   ├── RpcTimeout             no reply before the deadline
    │   ├── UnknownService         no such service on this broker
    │   ├── CircuitOpen            not sent: the target has been failing
    │   ├── Overloaded             not sent or not run: a limit is reached
    │   ├── RemoteError            the method raised; carries the remote type, text and traceback
    │   ├── MethodNotFound         the service has no such method
    │   └── IncorrectSignature     the arguments do not fit the method
    ├── ContractError              a payload is not what the contract says
    │   ├── MalformedRequest       the request cannot be read
    │   ├── UnserializableValueError   a value the chosen content type cannot carry
    │   └── UndecodableMessage     a body or header that cannot be decoded
    ├── RuntimeStateError          the runtime is used in a way its state does not allow
    └── FlowError                  pipelines

A message says what happened, with the values, where, and what to do. The values are attributes too, so
nobody parses text. An error knows its class of remedy: `retryable` says whether the same attempt may succeed
later, `retry_after` (seconds) when.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AccessRefused",
    "BrokerBlocked",
    "BrokerUnavailable",
    "CallError",
    "CircuitOpen",
    "ConfigError",
    "ContractError",
    "FlowError",
    "IncorrectSignature",
    "LinkError",
    "MalformedRequest",
    "MethodNotFound",
    "MyceliaError",
    "Overloaded",
    "ProtocolError",
    "PublishRejected",
    "RemoteError",
    "RpcTimeout",
    "RuntimeStateError",
    "TopologyError",
    "UndecodableMessage",
    "UnknownService",
    "Unroutable",
    "UnserializableValueError",
]


class MyceliaError(Exception):
    """The root of every error that Mycelia raises on purpose."""

    retryable: ClassVar[bool] = False
    retry_after: float | None = None


class ConfigError(MyceliaError):
    """The configuration names something that cannot be: an unknown key, a wrong type, a missing module."""


# --- between this process and the broker ---------------------------------------------------------


class LinkError(MyceliaError):
    """Between this process and the broker."""


class BrokerUnavailable(LinkError):
    """No broker could be reached within the time given."""

    retryable = True


class BrokerBlocked(LinkError):
    """The broker has stopped taking publishings (`connection.blocked`: a memory or disk alarm)."""

    retryable = True


class AccessRefused(LinkError):
    """The broker refused the user, the password or the virtual host."""


class PublishRejected(LinkError):
    """The broker answered a publishing with `basic.nack`; it has not taken responsibility for it."""

    retryable = True


class Unroutable(LinkError):
    """A mandatory publishing came back: no queue is bound for it (`basic.return`, 312 NO_ROUTE)."""

    def __init__(self, exchange: str, routing_key: str) -> None:
        super().__init__(
            f'no queue is bound for routing key "{routing_key}" on exchange "{exchange}". '
            "Start the consumer that declares it, or publish without mandatory=True."
        )
        self.exchange = exchange
        self.routing_key = routing_key


class TopologyError(LinkError):
    """The broker refuses a declaration for good, for instance an exchange of another type."""


class ProtocolError(LinkError):
    """Bytes that are not AMQP 0-9-1, or a method that the state does not allow."""


# --- calls to another service --------------------------------------------------------------------


class CallError(MyceliaError):
    """A call to another service did not give a result."""


class RpcTimeout(CallError):
    """No reply arrived before the deadline. The method may have run, may be running, or may never run."""

    retryable = True

    def __init__(self, target: str, timeout: float, hint: str = "") -> None:
        text = f"{target}: no reply within {timeout:g} s. "
        super().__init__(
            text
            + (
                hint
                or f"Is the service running, and is it fast enough? Raise timeout= (now {timeout:g})."
            )
        )
        self.target = target
        self.timeout = timeout


class UnknownService(CallError):
    """No service of this name has ever been started on this broker (its request queue does not exist)."""

    def __init__(self, service_name: str) -> None:
        super().__init__(
            f'no service "{service_name}" on this broker: queue "rpc-{service_name}" does not exist. '
            "Check the name, or start the service."
        )
        self.service_name = service_name


class CircuitOpen(CallError):
    """Not sent: the target has been failing and its circuit is open."""

    retryable = True


class Overloaded(CallError):
    """Not sent or not run: a limit (rate, bulkhead, queue) is reached."""

    retryable = True


class RemoteError(CallError):
    """The remote method raised an error whose class this process does not know.

    `str()` reads as Nameko's does: the remote type, a space, the remote text.
    """

    def __init__(
        self, exc_type: str | None = None, value: str | None = "", traceback: str | None = None
    ) -> None:
        super().__init__(f"{exc_type} {value}")
        self.exc_type = exc_type
        self.value = value
        self.remote_traceback = traceback
        """The traceback as text, from Mycelia peers; `None` from stock Nameko ones."""


class MethodNotFound(CallError):
    """The service has no RPC method of this name. On the wire: `nameko.exceptions.MethodNotFound`."""


class IncorrectSignature(CallError):
    """The arguments do not fit the method. On the wire: `nameko.exceptions.IncorrectSignature`."""


# --- payloads ------------------------------------------------------------------------------------


class ContractError(MyceliaError):
    """A payload is not what the contract says."""


class MalformedRequest(ContractError):
    """The request cannot be read. On the wire: `nameko.exceptions.MalformedRequest`."""


class UnserializableValueError(ContractError):
    """A value that the chosen content type cannot carry.

    On the wire: `nameko.exceptions.UnserializableValueError`.
    """


class UndecodableMessage(ContractError):
    """A body or header that cannot be decoded: unknown content type, not accepted, or broken bytes."""


# --- the runtime ---------------------------------------------------------------------------------


class RuntimeStateError(MyceliaError):
    """The runtime is used in a way its state does not allow, for instance outside its event loop."""


class FlowError(MyceliaError):
    """Pipelines: state, checkpoints, partitions."""
