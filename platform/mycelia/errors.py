"""One tree of errors, in the users' words.

    MyceliaError
    ├── ConfigError                the configuration names something that cannot be
    │   └── UnknownSerializer      a serializer that nobody has registered
    ├── LinkError                  between this process and the broker
    │   ├── BrokerUnavailable      no broker answered in time; try again later
    │   ├── BrokerBlocked          the broker has stopped taking publishings (memory or disk alarm)
    │   ├── AccessRefused          user, password or virtual host are wrong; trying again is no use
    │   ├── PublishRejected        the broker said no to a publishing (basic.nack)
    │   │   └── MessageTooLarge    its body is larger than the broker takes
    │   ├── Unroutable             no queue is bound for the message (basic.return)
    │   ├── TopologyError          a declaration is refused for good
    │   └── ProtocolError          bytes that are not AMQP 0-9-1
    ├── CallError                  a call to another service
    │   ├── RpcTimeout             no reply before the deadline
    │   ├── UnknownService         no such service on this broker
    │   ├── CircuitOpen            kept for breakers, which are not built yet: nothing raises it
    │   ├── Overloaded             not run: a limit is reached, or it would only be late
    │   ├── DeadlinePassed         not run: nobody waits for the result any more
    │   ├── HandlerTimeout         the method ran longer than it may, and was given up
    │   ├── TooManyDeliveries      not run: the message has come back too often
    │   ├── KeyParked              not run: an earlier message of its key failed for good
    │   ├── RemoteError            the method raised; carries the remote type, text and traceback
    │   ├── MethodNotFound         the service has no such method
    │   └── IncorrectSignature     the arguments do not fit the method
    ├── ContractError              a payload is not what the contract says
    │   ├── MalformedRequest       the request cannot be read
    │   ├── UnserializableValueError   a value the chosen content type cannot carry
    │   └── UndecodableMessage     a body or header that cannot be decoded
    ├── RetryLater                 raised by a handler: once more, after a while
    ├── RuntimeStateError          the runtime is used in a way its state does not allow
    └── FlowError                  logs and flows: partitions, positions, checkpoints
        ├── FlowFunctionError      a user's function in a flow raised
        ├── StateIncompatible      the state of a flow is not what its code can read
        ├── StateUnavailable       the state of a flow cannot be read or written
        ├── UnknownTableKey        a table of a flow has nothing of the key
        ├── PartitionAway          a partition of a flow has no owner that answers
        ├── LeaseLost              a partition has another owner by now
        └── OffsetGone             a log does not hold the entry any more that a reader has to go on from

A message says what happened, with the values, where, and what to do. The values are attributes too, so
nobody parses text. An error knows its class of remedy: `retryable` says whether the same attempt may succeed
later, `retry_after` (seconds) when.
"""

from __future__ import annotations

import traceback
from typing import ClassVar

__all__ = [
    "AccessRefused",
    "BrokerBlocked",
    "BrokerUnavailable",
    "CallError",
    "CircuitOpen",
    "ConfigError",
    "ContractError",
    "DeadlinePassed",
    "FlowError",
    "FlowFunctionError",
    "HandlerTimeout",
    "IncorrectSignature",
    "KeyParked",
    "LeaseLost",
    "LinkError",
    "MalformedRequest",
    "MessageTooLarge",
    "MethodNotFound",
    "MyceliaError",
    "OffsetGone",
    "Overloaded",
    "PartitionAway",
    "ProtocolError",
    "PublishRejected",
    "RemoteError",
    "RetryLater",
    "RpcTimeout",
    "RuntimeStateError",
    "StateIncompatible",
    "StateUnavailable",
    "TooManyDeliveries",
    "TopologyError",
    "UndecodableMessage",
    "UnknownSerializer",
    "UnknownService",
    "UnknownTableKey",
    "Unroutable",
    "UnserializableValueError",
]


class MyceliaError(Exception):
    """The root of every error that Mycelia raises on purpose."""

    retryable: ClassVar[bool] = False
    retry_after: float | None = None


class ConfigError(MyceliaError):
    """The configuration names something that cannot be: an unknown key, a wrong type, a missing module."""


class UnknownSerializer(ConfigError):
    """A serializer that nobody has registered is asked for by its name: in the configuration, or by one publishing or call."""


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


class MessageTooLarge(PublishRejected):
    """A body is larger than the broker takes (`max_message_size`). Not sent, or sent and refused."""

    retryable = False

    def __init__(self, what: str, size_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"{what}: the body is {size_bytes} bytes, and the broker takes {max_bytes} at most "
            "(max_message_size). Send less, or in parts, or raise the broker's limit."
        )
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes


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
    """Kept for breakers, which are not built yet: not sent, because the target has been failing. Nothing raises it."""

    retryable = True


class Overloaded(CallError):
    """Not run: too many calls wait, or this one has waited so long that it would only be late."""

    retryable = True


class DeadlinePassed(CallError):
    """Not run: the call's deadline had passed before its method could begin, so nobody waits for the result."""


class HandlerTimeout(CallError):
    """The method ran longer than it may: its task was cancelled, or its thread left to itself."""

    def __init__(self, target: str, timeout: float) -> None:
        super().__init__(
            f"{target}: not done after {timeout:g} s, so it was given up. "
            "Make it faster, or raise its timeout= (for an RPC, the caller's)."
        )
        self.target = target
        self.timeout = timeout


class TooManyDeliveries(CallError):
    """Not run: the message has come back too often without an outcome; it may be what kills its process."""

    def __init__(self, queue: str, limit: int) -> None:
        super().__init__(
            f'queue "{queue}": this message has come back {limit} times without an outcome, so it is not tried again. '
            "Whoever handles it dies of it, is stopped, or takes longer than the broker waits."
        )
        self.queue = queue
        self.limit = limit


class KeyParked(CallError):
    """Not run: an earlier message of its key failed for good, and the handler parks what follows."""

    def __init__(self, target: str, key: object) -> None:
        told = f"{key!r:.80}" if type(key) in (str, int) else f"({type(key).__name__})"
        super().__init__(
            f"{target}: an earlier message of key {told} could not be handled, so this one is not begun. See to the first "
            "dead letter of this key, then redrive them all: they release the key."
        )
        self.target = target
        self.key = key


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


class _Explained:
    """Of an error whose arguments are Nameko's, because stock callers read them: the text for everybody else."""

    def __init__(self, *args: object, explanation: str = "") -> None:
        super().__init__(*args)
        self.explanation = explanation

    def __str__(self) -> str:
        return self.explanation or super().__str__()


class MethodNotFound(_Explained, CallError):
    """The service has no RPC method of this name. On the wire: `nameko.exceptions.MethodNotFound`.

    Its one argument is the name; its text says which methods there are, if the service is Mycelia's.
    """


class IncorrectSignature(_Explained, CallError):
    """The arguments do not fit the method. On the wire: `nameko.exceptions.IncorrectSignature`.

    Its one argument is Python's word on it; its text says what the method takes, if the service is Mycelia's.
    """


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


class RetryLater(MyceliaError):
    """Raised by a handler: another attempt at this message, `after` from now. The caller of an `@rpc` waits on, within its deadline.

    It counts as an attempt, and ends where the handler's `Retry` ends; without one at the setting `mycelia.requeue_attempts`.

    Args:
        after: seconds, or text such as "5m".
        reason: said in logs, and in the dead letter if there is no further attempt.
    """

    def __init__(self, after: float | str, reason: str = "") -> None:
        super().__init__(reason or f"another attempt is asked for after {after}")
        self.after = after


class RuntimeStateError(MyceliaError):
    """The runtime is used in a way its state does not allow, for instance outside its event loop."""


class FlowError(MyceliaError):
    """Of logs and flows: their partitions, positions and checkpoints."""


class LeaseLost(FlowError):
    """A partition is not this process's any more: its connection was lost, and another may have taken over."""


_OTHER_OFFSET = (
    "Begin anew from another offset (first, next, a time), knowing that, or bring the log back from where it is kept; "
    "and let the log retain more than readers are ever behind."
)


class OffsetGone(FlowError):
    """A reader has to go on from an entry that its log does not hold: going on elsewhere would pass over records in silence."""

    def __init__(self, stream: str, wanted: int, found: str, remedy: str | None = None) -> None:
        super().__init__(
            f'stream "{stream}": a reader has to go on from offset {wanted}, but {found}. What lies between is lost to it. '
            + (remedy or _OTHER_OFFSET)
        )
        self.stream = stream
        self.wanted = wanted
        self.found = found
        self.remedy = remedy
        """What whoever reads can do; `None`: nobody has said, so it is what a program can."""

    def with_remedy(self, remedy: str) -> OffsetGone:
        """The same, with what there is to do, unless that has been said."""
        if self.remedy is not None:
            return self
        return OffsetGone(self.stream, self.wanted, self.found, remedy)


class FlowFunctionError(FlowError):
    """A user's function in a flow raised; the cause is `__cause__`.

    The engine that raises it has taken part of a batch. It is given up, and another starts from the last checkpoint.
    """

    def __init__(
        self, operator: str, cause: BaseException, position: int | None, key: object
    ) -> None:
        where = "" if position is None else f", record {position} of the batch"
        if key is not None:
            where += f", key {key!r:.80}"
        super().__init__(f'operator "{operator}"{where}: {describe(cause)}')
        self.operator = operator
        self.position = position
        """Which record of the batch that the engine was given, from 0; None where it was no single one of them."""
        self.key = key
        self.channel: object = None
        """The partition that the record came from, as the engine calls it."""
        self.also: list[FlowFunctionError] = []
        """Those of other records of the same turn, where the engine collects them."""
        self.timer: tuple[str, str, int, int] | None = None
        """Of the function of a timer: the timer's name, its clock, "event" or "wall", its time in milliseconds, and for which time since the last
        checkpoint it fired, as it may have been set again."""


class StateUnavailable(FlowError):
    """The state of a flow cannot be read or written: locked, no room, no right, damaged, or not where it is looked for."""

    def __init__(self, what: str, path: str, reason: object) -> None:
        if isinstance(reason, BaseException):
            told = text_of(reason)
            if "locked" in told or "busy" in told:
                hint = "Another process holds its lock: a former owner that stands still, a backup, a shell. End that one, or wait"
            elif "not a database" in told or "malformed" in told:
                hint = "It is damaged, or something else: move it away, and go on from a savepoint or reset the flow"
            else:
                hint = "See that this process may write it and its directory (mycelia.flows.state), and that the disk has room"
            told = f"{told}. {hint}"
        else:
            told = str(reason)
        kind = "state in" if "://" in path else "state file"
        super().__init__(f"{what}: the {kind} {path} cannot be used: {told}.")
        self.path = path


class StateIncompatible(FlowError):
    """State that this code cannot read, or that belongs to another flow than this one has become."""


class UnknownTableKey(FlowError):
    """A table of a flow, or another step that was asked, has nothing of the key, as of the last commit."""

    def __init__(self, table: str, flow: str, key: object, nothing: str = "nothing") -> None:
        super().__init__(
            f'"{table}" of flow "{flow}" has {nothing} of key {key!r:.80}. Keys are as key_by() gives them: 1 and "1" are two.'
        )
        self.table = table
        self.key = key


class PartitionAway(FlowError):
    """A partition of a flow has no owner now, or none that answers in time; so what it has of a key is not known."""

    retryable = True

    def __init__(self, flow: str, stage: str, partition: int, waited: float) -> None:
        super().__init__(
            f'flow "{flow}", stage "{stage}", partition {partition}: no owner answered within {waited:.1f} s. It is moving, or no instance of '
            "the flow runs. Ask again, or see `mycelia flow show`."
        )
        self.flow = flow
        self.partition = partition


def describe(error: BaseException) -> str:
    """`Type: text` for any error, also for one whose own `__str__` raises."""
    return f"{class_name_of(error)}: {text_of(error)}"


def text_of(error: BaseException) -> str:
    """`str(error)`; where that raises, a word about it instead. Never raises, never holds what UTF-8 cannot."""
    try:
        text = str(error)
    except BaseException as exc:  # noqa: BLE001  a user's `__str__` may raise anything
        text = f"(its text cannot be had: __str__ raised {class_name_of(exc)})"
    # `str`'s own method: what `__str__` returns may be of a class that overrides it
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8")


def traceback_of(error: BaseException) -> str:
    """Its traceback as text, causes and notes included. Never raises, never holds what UTF-8 cannot."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as exc:  # noqa: BLE001  notes, causes and locals may do anything when they are looked at
        return f"(its traceback cannot be had: {class_name_of(exc)})"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def class_name_of(error: BaseException) -> str:
    """The name of the error's class, also where its metaclass has another idea of `__name__`."""
    name: str = type.__dict__["__name__"].__get__(type(error))
    return name
