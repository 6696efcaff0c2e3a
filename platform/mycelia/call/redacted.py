"""A call's arguments as they may be shown: the one function for access lines, traces and whoever else shows them."""

from __future__ import annotations

import inspect
from typing import Any

from mycelia.call.model import Call
from mycelia.call.target import CallKind
from mycelia.redaction import HIDDEN, SensitivePaths, redacted

__all__ = ["redacted_arguments"]

NOTHING_DECLARED = SensitivePaths(())


def redacted_arguments(call: Call) -> dict[str, Any]:
    """The arguments of a call that arrived, by name, without what its `sensitive_arguments` name; fit for a log line.

    Plain data (text, numbers, lists, maps) of a bounded size: long text is cut, what is beyond the bound left out. Values whose
    own name says that they are secret (`password`, `auth_token`, …) are hidden whoever has declared what. The arguments
    themselves stay as they are.

    Empty where nobody has read the arguments (a call that was refused), and where no declaration says what is sensitive: of a
    call that leaves, of a method that does not exist. Of an HTTP request they are those in its path. Never raises.
    """
    declared, arguments = call.target.declared, call.arguments
    if declared is None or arguments is None:
        return {}
    args, kwargs = arguments
    is_http = call.kind is CallKind.HTTP and bool(args)
    if is_http:  # the request itself, which knows all headers and cookies
        args = (None, *args[1:])
    try:
        bound = declared.signature.bind(None, *args, **kwargs)
    except Exception:  # noqa: BLE001  they do not fit: only those that came with a name have one
        if not args:
            return redacted(kwargs, declared.sensitive)
        placed = HIDDEN if declared.sensitive else list(args)
        return redacted({"args": placed, **kwargs}, declared.sensitive)
    bound.apply_defaults()
    (own, *_), named = tuple(declared.signature.parameters), dict(bound.arguments)
    del named[own]
    for parameter in declared.signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= {k: v for k, v in named.pop(parameter.name).items() if k not in named}
    shown = redacted(named, declared.sensitive)
    if is_http:
        del shown[next(iter(shown))]
    return shown
