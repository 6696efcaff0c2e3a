"""Which of Mycelia's extensions runs a declaration; `nameko/counterparts.py`, `runtime/declarations.py`.

Declarations are recognised by the names of their classes, so that neither Mycelia nor these tests import Nameko.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mycelia import Runner, rpc
from mycelia.entrypoints import EventHandler, Rpc, Timer
from mycelia.errors import ConfigError
from mycelia.nameko.bridged_dependency import BridgedDependency
from mycelia.nameko.bridged_entrypoint import BridgedEntrypoint
from mycelia.nameko.declarations import (
    NamekoDeclarations,
    dependency_counterpart,
    entrypoint_counterpart,
)
from mycelia.runtime import register_entrypoint


def _stock(name: str, *bases: type, **attributes: Any) -> type:
    """A class that has the name of one of Nameko's."""
    module, _, cls_name = name.rpartition(".")
    return type(cls_name, bases, {"__module__": module, **attributes})


Extension = _stock("nameko.extensions.Extension", setup=None, start=None)
Entrypoint = _stock(
    "nameko.extensions.Entrypoint",
    Extension,
    expected_exceptions=(KeyError,),
    sensitive_arguments=("password",),
)
StockRpc = _stock("nameko.rpc.Rpc", Entrypoint, handle_message=None)
StockTimer = _stock("nameko.timer.Timer", Entrypoint, interval=7, eager=True)
StockHandler = _stock(
    "nameko.events.EventHandler",
    Entrypoint,
    source_service="feed",
    event_type="departed",
    handler_type="broadcast",
    reliable_delivery=True,
    requeue_on_error=False,
    broadcast_identifier="made at the start",
)
Dependency = _stock("nameko.extensions.DependencyProvider", Extension, get_dependency=None)
StockProxy = _stock("nameko.rpc.RpcProxy", Dependency, target_service="planes", options={})


def test_stock_entrypoint_runs_as_ours_with_its_options() -> None:
    counterpart = entrypoint_counterpart(StockTimer())

    assert isinstance(counterpart, Timer)
    assert (counterpart.interval, counterpart.eager) == (7.0, True)
    assert counterpart.expected_exceptions == (KeyError,)
    assert counterpart.sensitive_arguments == ("password",)


def test_subclass_that_only_adds_runs_as_ours() -> None:
    adds = type("Adds", (StockRpc,), {"__init__": lambda self: None, "more": 1})

    assert type(entrypoint_counterpart(adds())) is Rpc


def test_subclass_that_overrides_runs_as_it_is() -> None:
    overrides = type("Overrides", (StockRpc,), {"handle_message": lambda self: None})

    assert type(entrypoint_counterpart(overrides())) is BridgedEntrypoint


def test_override_that_the_counterpart_reads_is_kept() -> None:
    named = type("Named", (StockHandler,), {"broadcast_identifier": "host-1"})

    counterpart = entrypoint_counterpart(named())

    assert isinstance(counterpart, EventHandler)
    assert counterpart.broadcast_identifier == "host-1"
    assert counterpart.queue_type == "classic"


def test_provider_that_overrides_runs_as_it_is_on_our_own() -> None:
    overrides = type("Overrides", (StockProxy,), {"get_dependency": lambda self, ctx: "mine"})

    counterpart: Any = dependency_counterpart(overrides())

    assert type(counterpart) is BridgedDependency
    assert counterpart.stock_cls is StockProxy
    assert counterpart.counterpart.target_service == "planes"


def test_what_is_not_written_for_nameko_is_left_to_others() -> None:
    reader = NamekoDeclarations()
    container: Any = None

    assert reader.bind_dependency("text", container, "a") is None
    assert reader.bind_entrypoint(object(), container, "method") is None


def test_entrypoint_that_nothing_knows_is_named() -> None:
    class Service:
        name = "strange"

        @rpc
        def method(self) -> None: ...

    register_entrypoint(Service.method, object())

    with pytest.raises(ConfigError, match=r"Service\.method: its entrypoint builtins\.object is"):
        Runner({"AMQP_URI": "memory://strange"}, [Service])


def test_mycelia_alone_imports_nothing_of_nameko() -> None:
    code = (
        "import mycelia, sys; "
        "print(sorted({'nameko', 'kombu', 'eventlet'} & {m.partition('.')[0] for m in sys.modules}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )

    assert found.stdout == "[]\n"
