"""Services whose modules replace methods of Nameko's, as tracing packages do; each in a process of its own."""

from __future__ import annotations

import os
from typing import Any

from nameko.containers import ServiceContainer
from nameko.rpc import MethodProxy, Responder, RpcProxy, rpc

side = os.environ.get("SIDE", "here")


class PatchesContainer:
    name = "patches_container"

    @rpc
    def method(self) -> None: ...


if "SIDE" not in os.environ:
    ServiceContainer._run_worker = lambda self, *args: None

calls: list[str] = []
call = MethodProxy._call
send = Responder.send_response


def traced_call(self: Any, *args: Any, **kwargs: Any) -> Any:
    calls.append(self.method_name)
    return call(self, *args, **kwargs)


def traced_send(self: Any, result: Any, exc_info: Any) -> Any:
    return send(self, ["traced", result], exc_info)


MethodProxy._call = traced_call
Responder.send_response = traced_send


class Traced:
    name = f"traced_{side}"
    me = RpcProxy(f"traced_{side}")

    @rpc
    def inner(self) -> int:
        return 1

    @rpc
    def outer(self) -> Any:
        return [self.me.inner(), calls]
