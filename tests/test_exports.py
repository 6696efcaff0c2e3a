"""The public names: those that the API reference has, and no others; of errors and tests' helpers, these."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from scripts.public_names import PUBLIC_NAMES

import mycelia
from mycelia import errors, testing

TESTING = {
    *("run_services", "ServiceBed", "make_worker", "eventually"),
    *("entrypoint_hook", "entrypoint_waiter", "EntrypointWaiterTimeout", "WaitResult"),
    *("replace_dependencies", "restrict_entrypoints", "worker_factory"),
    *("DrivenClock", "faults", "take_dead_letters", "TakenLetter"),
    *("FlowDriver", "DrivenRecord"),
    *("PrivateNode", "TcpProxy", "Fault"),
    *("SpanReceiver", "ReceivedSpan"),
}

FLOW = {
    # streams and steps
    *(
        "source",
        "Stream",
        "KeyedStream",
        "WindowedStream",
        "WindowedResults",
        "JoinedStream",
        "PatternStream",
        "KeyContext",
    ),
    *("tumbling", "hopping", "sliding", "session", "counting", "after", "every"),
    *("WindowResult", "WindowSpan", "LateRecord", "RejectedRecord"),
    # aggregations
    *(
        "Aggregation",
        "aggregation",
        "count",
        "sum_of",
        "mean",
        "min_of",
        "max_of",
        "top",
        "distinct",
        "quantile",
        "first",
        "last",
        "collect",
        "together",
    ),
    # running
    *("flow", "FlowOutput", "FlowHandler", "FlowStatistics", "PartitionCommit", "StageStatistics"),
    *(
        "FlowPlan",
        "stages_of",
        "Engine",
        "Given",
        "Changes",
        "MemoryStore",
        "StateStore",
        "StoreReader",
    ),
}

ERRORS = {
    *(
        "MyceliaError",
        "ConfigError",
        "UnknownSerializer",
        "RetryLater",
        "RuntimeStateError",
        "FlowError",
        "LeaseLost",
        "OffsetGone",
        "FlowFunctionError",
        "StateIncompatible",
        "StateUnavailable",
        "UnknownTableKey",
        "PartitionAway",
    ),
    *("LinkError", "BrokerUnavailable", "BrokerBlocked", "AccessRefused", "PublishRejected"),
    "MessageTooLarge",
    *("Unroutable", "TopologyError", "ProtocolError"),
    *(
        "CallError",
        "DeadlinePassed",
        "HandlerTimeout",
        "KeyParked",
        "TooManyDeliveries",
        "RpcTimeout",
        "UnknownService",
        "CircuitOpen",
        "Overloaded",
    ),
    *("RemoteError", "MethodNotFound", "IncorrectSignature"),
    *("ContractError", "MalformedRequest", "UnserializableValueError", "UndecodableMessage"),
}


@pytest.mark.parametrize(
    ("module", "names"),
    [(mycelia, PUBLIC_NAMES), (testing, TESTING), (errors, ERRORS)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_public_names_are_these_and_exist(module: ModuleType, names: set[str]) -> None:
    assert set(module.__all__) == names
    assert [name for name in names if not hasattr(module, name)] == []


def test_the_documents_name_every_public_name() -> None:
    """Once at least, as code: what nobody is told of is nobody's to use."""
    root = Path(__file__).parent.parent
    text = "\n".join(path.read_text() for path in (root / "docs").glob("*.md"))
    named = {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"\w+", code)}

    assert PUBLIC_NAMES - named == set()


def test_every_error_is_in_the_tree() -> None:
    classes = [getattr(errors, name) for name in ERRORS]

    assert [cls for cls in classes if not issubclass(cls, errors.MyceliaError)] == []


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert version("mycelia") == mycelia.__version__
