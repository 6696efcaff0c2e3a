"""Extensions: entrypoints, what dependency providers are as well, and what they share. Nameko's model; hooks may be async.

Written in a class body, an extension is a prototype; `bind()` makes the instance that one container uses, with the
same arguments. So `__init__` runs twice and must have no side effects: those belong in `setup()`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar, ParamSpec, Protocol, Self, TypedDict, TypeVar, overload

import msgspec

from mycelia.call import (
    Ack,
    Arguments,
    Call,
    CallKind,
    Declaration,
    Direction,
    Middleware,
    Outcome,
    Settlement,
    Target,
)
from mycelia.errors import ConfigError, DeadlinePassed, describe
from mycelia.handover import hand_over
from mycelia.log_event import event
from mycelia.runtime.adaptive_prefetch import AdaptivePrefetch
from mycelia.runtime.decorators import (
    ENTRYPOINTS_ATTRIBUTE,
    Marks,
    declare,
    register_entrypoint,
)
from mycelia.runtime.host import Host
from mycelia.runtime.keyed_lane import KeyOrder
from mycelia.runtime.lane import Lane
from mycelia.runtime.methods import function_in, method_of
from mycelia.runtime.settings import Settings

__all__ = [
    "ENTRYPOINTS_ATTRIBUTE",
    "BoundTo",
    "Entrypoint",
    "EntrypointArguments",
    "Extension",
    "SharedExtension",
    "maybe_await",
    "register_entrypoint",
]

log = logging.getLogger("mycelia.runtime")

P = ParamSpec("P")
Method = TypeVar("Method", bound=Callable[..., Any])


async def maybe_await(value: Awaitable[Any] | Any) -> Any:
    """Await what a hook returned if it is awaitable, else give it back."""
    if inspect.isawaitable(value):
        return await value
    return value


class BoundTo(Protocol):
    """What an extension may ask of the container that it is bound to. `Container` is one."""

    service_name: str
    service_cls: type
    config: Mapping[str, Any]
    """The whole configuration."""
    host: Host
    """What the services of this process share: the broker link, serializers."""
    shared_extensions: dict[Any, Any]
    """By `SharedExtension.sharing_key`."""

    @property
    def settings(self) -> Settings:
        """The checked configuration, as it is now."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it runs on, from `start()` on."""
        ...

    @property
    def has_begun(self) -> bool:
        """Whether `start()` has been called."""
        ...

    @property
    def active_workers(self) -> int:
        """Workers that run now, of all entrypoints."""
        ...

    def adopt(self, extension: Extension) -> None:
        """Take part in `extension`'s life cycle; called by `Extension.bind()`."""
        ...

    def middleware_for(self, target: Target) -> tuple[Middleware, ...]:
        """What stands around calls of `target` in this service, outermost first."""
        ...

    def make_lane(
        self,
        entrypoint: Entrypoint,
        target: Target | None = None,
        *,
        order: KeyOrder | None = None,
    ) -> Lane:
        """The lane in which `entrypoint`'s workers run; call it in `setup()` or `start()`."""
        ...

    def concurrency_of(self, entrypoint: Entrypoint) -> int:
        """Workers at once of `entrypoint`."""
        ...

    def prefetch_of(self, entrypoint: Entrypoint) -> int:
        """Messages that the broker may have outstanding for `entrypoint`."""
        ...

    def shared_prefetch_of(self, entrypoints: Iterable[Entrypoint]) -> int:
        """As `prefetch_of()`, for entrypoints that share one queue."""
        ...

    def end(self, error: BaseException | None = None) -> None:
        """Ask whoever runs the container to stop the services of this process; from any thread."""
        ...

    def at_end(self, step: Callable[[], Awaitable[None]]) -> None:
        """Await `step()` when every extension has stopped."""
        ...


class Extension:
    """Something with a life cycle in a container.

    Hooks may be `def` or `async def` and run on the event loop: `setup()` of all extensions at once; when all have
    returned, `start()` of all at once. `stop()` and `kill()` when the service goes down.
    """

    __params: tuple[tuple[Any, ...], dict[str, Any]]
    container: BoundTo | None = None
    """The container this instance is bound to (a weak proxy); `None` on a prototype."""

    needs_broker: ClassVar[bool] = False
    """Whether the process must have a broker link before `setup()`."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        instance = super().__new__(cls)
        instance.__params = (args, kwargs)
        return instance

    def middleware(self, direction: Direction, target: Target) -> Middleware | None:
        """Middleware around calls of `target`; `None`, the default, for none.

        Asked once for each target: of every entrypoint of the container when all extensions are bound, before any
        `setup()`; of a method of another service, an event or an exchange when it is first used. The extensions of a
        container stand in the order in which the service class names them, inside what configuration and runner bring.
        """
        return None

    def setup(self) -> Any:
        """Initialise what does not react to the outside yet. Raising stops the start."""

    def start(self) -> Any:
        """Begin to act. Every extension of the container has been set up. Raising stops the start."""

    def stop(self) -> Any:
        """Shut down gracefully. Errors are logged; the stop goes on."""

    def kill(self) -> Any:
        """Shut down at once, without grace. Errors are logged."""

    def reconfigure(self, old: Settings, new: Settings) -> None:
        """Settings have changed while the service runs (`Host.change_settings()`); `container.settings` are the new ones.

        For what has been copied from them in `setup()` or `start()`. On the event loop; must not wait. Errors are logged.
        """

    def statistics(self) -> msgspec.Struct | None:
        """What it counts, as a record of its own that JSON can carry; `None`, the default, for nothing.

        Asked at any time, on the event loop; part of `ServiceStatistics.extensions`.
        """
        return None

    def bind(self, container: Any) -> Any:
        """The instance that `container` uses; sub-extensions (attributes) are bound with it.

        In a container that is not Mycelia's, under `nameko run`, this does not return: the process is handed over
        to the native runtime.
        """
        if not getattr(container, "is_native", False):
            hand_over(
                f"{type(self).__name__} of service {getattr(container, 'service_name', '?')!r}"
            )
        instance = self._clone(container)
        for name, extension in inspect.getmembers_static(self, _is_extension):
            setattr(instance, name, extension.bind(container))
        container.adopt(instance)
        return instance

    def _clone(self, container: Any) -> Any:
        args, kwargs = self.__params
        instance = type(self)(*args, **kwargs)
        # Weak, because the container holds its extensions.
        proxy: Any = weakref.proxy(container)
        instance.container = proxy
        return instance

    def is_bound(self) -> bool:
        return self.container is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{'' if self.is_bound() else ' [unbound]'}>"


def _is_extension(value: object) -> bool:
    return isinstance(value, Extension)


class SharedExtension(Extension):
    """An extension of which a container has one, however many others refer to it."""

    @property
    def sharing_key(self) -> Any:
        """What makes two prototypes the same; their type, by default."""
        return type(self)

    def bind(self, container: Any) -> Any:
        shared = getattr(container, "shared_extensions", {})
        if self.sharing_key not in shared:
            shared[self.sharing_key] = super().bind(container)
        return shared[self.sharing_key]


class EntrypointArguments(TypedDict, total=False):
    """The options of every entrypoint, as keyword arguments; a test holds them to those of `Entrypoint`."""

    expected_exceptions: type[BaseException] | tuple[type[BaseException], ...]
    sensitive_arguments: str | tuple[str, ...]
    concurrency: int | None
    prefetch: int | AdaptivePrefetch | None
    timeout: float | None


class Entrypoint(Extension):
    """Something that makes workers run a method of the service.

    Args:
        expected_exceptions: what callers may cause; logged as a warning instead of an error.
        sensitive_arguments: arguments whose values nobody may see in a log line or a trace: `"password"`, a part as in
            `"user.password"`, `"cards[0].number"`, of each item as in `"cards[].number"`; or several in a tuple.
        concurrency: how many workers of this entrypoint may run at once; the service's setting by default.
        prefetch: how many messages the broker may have outstanding here; twice the concurrency by default. Handlers of events and
            messages may have it adapt: `AdaptivePrefetch()`.
        timeout: seconds that the method may take; then its task is cancelled, or its thread left to itself, and the
            call ends as `HandlerTimeout`. The setting `mycelia.handler_timeout` (any time) by default.
    """

    method_name: str = ""
    kind: CallKind = CallKind.OTHER
    on_success: ClassVar[Settlement] = Ack()
    """What becomes of a call whose outcome is a value, and says nothing of it."""
    settlements: ClassVar[frozenset[type[Settlement]]] = frozenset({Ack})
    """What a middleware may have done with this kind of call."""
    sheds_overload: ClassVar[bool] = False
    """Whether a call that has waited is refused when it has less time left than the method usually takes."""
    adapts_prefetch: ClassVar[bool] = False
    """Whether it can have an `AdaptivePrefetch`."""
    target: Target
    """Its calls' target, made when it is bound."""

    # What `__init__` is given, for subclasses whose own does not call it.
    expected_exceptions: type[BaseException] | tuple[type[BaseException], ...] = ()
    sensitive_arguments: str | tuple[str, ...] = ()
    concurrency: int | None = None
    prefetch: int | AdaptivePrefetch | None = None
    timeout: float | None = None

    def __init__(
        self,
        *,
        expected_exceptions: type[BaseException] | tuple[type[BaseException], ...] = (),
        sensitive_arguments: str | tuple[str, ...] = (),
        concurrency: int | None = None,
        prefetch: int | AdaptivePrefetch | None = None,
        timeout: float | None = None,
    ) -> None:
        if isinstance(prefetch, AdaptivePrefetch) and not self.adapts_prefetch:
            raise ConfigError(
                f"prefetch={prefetch!r}: only handlers of events and messages have one that adapts; say a number."
            )
        for name, value in (("concurrency", concurrency), ("prefetch", prefetch)):
            if isinstance(value, AdaptivePrefetch):
                continue
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")
        if timeout is not None and (type(timeout) not in (int, float) or not timeout > 0):
            raise ValueError(f"timeout={timeout!r}: expected seconds, a number above 0")
        self.timeout = timeout
        self.expected_exceptions = expected_exceptions
        self.sensitive_arguments = sensitive_arguments
        self.concurrency = concurrency
        self.prefetch = prefetch

    def bind(self, container: Any, method_name: str = "") -> Any:
        instance = super().bind(container)
        instance.method_name = method_name
        instance.target = instance.make_target(container)
        return instance

    def make_target(self, container: Any) -> Target:
        """The target of its calls, in `container`; what this entrypoint's declaration says goes along."""
        declared = Declaration(
            partial(method_of, container.service_cls, self.method_name),
            self.expected_exceptions,
            self.sensitive_arguments,
        )
        target = Target(
            Direction.INBOUND,
            self.kind,
            container.service_name,
            self.method_name,
            declared=declared,
        )
        unknown = declared.unknown_arguments() if declared.sensitive else None
        if unknown:
            log.warning(
                event("sensitive_argument_unknown", call=target.name, names=", ".join(unknown))
            )
        return target

    @property
    def method(self) -> Callable[..., Any]:
        """The service's method, unbound: called with the service and the arguments."""
        assert self.container is not None
        return method_of(self.container.service_cls, self.method_name)

    # --- a call's way, for those who write entrypoints ----------------------------------------

    def decode_arguments(self, call: Call) -> Arguments:
        """Read the method's arguments from what carried the call; run in the worker, when they are first needed.

        Raises:
            Exception: they cannot be read or do not fit; the call is refused with it, the method does not run.
        """
        raise NotImplementedError(f"{type(self).__name__} gives its calls no arguments to decode")

    def settlement_of(self, call: Call, outcome: Outcome) -> Settlement:
        """The rule of this kind: what becomes of a call whose outcome is an error, and says nothing of it. On the loop."""
        return Ack()

    def settle(self, call: Call, outcome: Outcome, settlement: Settlement) -> None:
        """Do it: once for each call, on the loop, last of all. Must neither raise nor wait."""

    def log_error(self, call: Call, outcome: Outcome) -> None:
        """The line for an outcome with an error: one form for all kinds."""
        error = outcome.error
        assert error is not None
        if isinstance(error, DeadlinePassed):
            log.info(event("call_expired", call=call.target.name))
        elif outcome.is_refused:
            log.warning(event("call_refused", call=call.target.name, error=describe(error)))
        elif isinstance(error, self.expected_exceptions):
            log.warning(
                event(
                    "worker_raised",
                    call=call.target.name,
                    call_id=call.call_id,
                    attempt=call.attempt,
                    error=describe(error),
                )
            )
        else:
            log.error(
                event(
                    "worker_failed",
                    call=call.target.name,
                    call_id=call.call_id,
                    attempt=call.attempt,
                    error=describe(error),
                ),
                exc_info=error if _has_more_to_show(error) else None,
            )

    def encode_result(self, call: Call, value: Any) -> bytes | None:
        """Turn the method's result into what is sent, in the worker; `None` where nothing is sent."""
        return None

    @overload
    @classmethod
    def decorator(cls, method: Method, /) -> Method: ...

    @overload
    @classmethod
    def decorator(cls: Callable[P, Entrypoint], *args: P.args, **kwargs: P.kwargs) -> Marks: ...

    @classmethod
    def decorator(cls: Any, *args: Any, **kwargs: Any) -> Any:
        """Use the class as a decorator: `notify = Notify.decorator`, then `@notify` or `@notify(…)`.

        What does not fit raises `ConfigError` when the method is decorated, in one line that names it.
        """
        if len(args) == 1 and not kwargs and function_in(args[0]) is not None:
            return declare(cls.__name__, cls, args[0], (), {})
        return partial(_declaring, cls, args, kwargs)


def _declaring(cls: Any, args: Any, kwargs: Any, method: Method) -> Method:
    declare(cls.__name__, cls, method, args, kwargs)
    return method


def _has_more_to_show(error: BaseException) -> bool:
    """Whether a traceback would say more than the line: an error that nobody raised has none."""
    return bool(
        error.__traceback__
        or error.__cause__
        or error.__context__
        or getattr(error, "__notes__", None)
        or isinstance(error, BaseExceptionGroup)
    )
