"""`context`: the context data of the call being handled, to read and to set for all that follows from it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from mycelia.call.model import Call, get_current_call
from mycelia.errors import RuntimeStateError, UnserializableValueError
from mycelia.wire import BAGGAGE, format_baggage, parse_baggage

__all__ = ["Baggage", "CurrentContext", "context"]


class CurrentContext(MutableMapping[str, Any]):
    """The context data of the call being handled here, in a task or in a worker thread: a mapping by name.

        from mycelia import context

        user_id = context.get("user_id")
        context["language"] = "de"          # goes along with every call and event that this worker makes from now on
        context.baggage["tenant"] = "acme"  # W3C baggage, which others than Mycelia and Nameko read too
        context.reply["cache"] = "hit"      # travels back to the caller

    Names are without the prefix `nameko.` that they have as headers. What is set here dies with the worker. Outside of one there
    is nothing to read, and setting raises `RuntimeStateError`: `Client(context=…)` is for programs.
    """

    def __getitem__(self, key: str) -> Any:
        call = get_current_call()
        if call is None:
            raise KeyError(key)
        return call.context[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise UnserializableValueError(
                f"context data: the key {key!r} is of type {type(key).__name__}; keys are text."
            )
        _call(f"context[{key!r}] = …").context[key] = value

    def __delitem__(self, key: str) -> None:
        call = get_current_call()
        if call is None:
            raise KeyError(key)
        del call.context[key]

    def __iter__(self) -> Iterator[str]:
        call = get_current_call()
        return iter(()) if call is None else iter(call.context)

    def __len__(self) -> int:
        call = get_current_call()
        return 0 if call is None else len(call.context)

    @property
    def baggage(self) -> Baggage:
        """The W3C baggage of the call, by name."""
        return Baggage()

    @property
    def reply(self) -> dict[str, Any]:
        """Context data that travels back with the answer of the RPC being handled, also with an error.

        The caller finds it as `reply.context` of `reply = proxy.method.call_async(…)`, its middleware as `call.reply_context`.
        One hop: a service in between passes on what it sets itself. Of an event or a timer's tick it goes nowhere.

        Raises:
            RuntimeStateError: no call is being handled here.
        """
        call = _call("context.reply")
        if call.reply_context is None:
            call.reply_context = {}
        return call.reply_context

    def __repr__(self) -> str:
        call = get_current_call()
        # The values are not shown: a token is among them.
        return f"<context of {call.target.name}: {', '.join(self)}>" if call else "<context: none>"


class Baggage(MutableMapping[str, str]):
    """W3C baggage of the call being handled: text by name, in the header `baggage` of all that follows from it.

    Anybody on the way can read it, other systems too: nothing that must stay secret. At most 180 members and 8192
    characters in all.
    """

    def __getitem__(self, name: str) -> str:
        return self._read()[name]

    def __setitem__(self, name: str, value: str) -> None:
        """Raises `UnserializableValueError` where that is more than baggage holds; nothing is changed then."""
        self._write({**self._read(), name: value})

    def __delitem__(self, name: str) -> None:
        members = self._read()
        del members[name]
        self._write(members)

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def _read(self) -> dict[str, str]:
        call = get_current_call()
        return {} if call is None else parse_baggage(call.context.get(BAGGAGE))

    def _write(self, members: dict[str, str]) -> None:
        data = _call("context.baggage[…] = …").context
        if members:
            data[BAGGAGE] = format_baggage(members)
        else:
            data.pop(BAGGAGE, None)

    def __repr__(self) -> str:
        return f"Baggage({self._read()!r})"


def _call(what: str) -> Call:
    call = get_current_call()
    if call is None:
        raise RuntimeStateError(
            f"{what}: no call is being handled here. In a program, give `Client(context={{…}})`."
        )
    return call


context = CurrentContext()
"""The context data of the call being handled here."""
