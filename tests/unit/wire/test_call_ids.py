from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import RFC_4122, UUID

import pytest
from tests.unit.wire import stock

import mycelia.errors
from mycelia.wire import call_id, extend_call_stack, new_uuid


def test_uuids_are_random_uuids_in_canonical_text() -> None:
    made = [new_uuid() for _ in range(1000)]

    parsed = [UUID(text) for text in made]
    assert [str(uuid) for uuid in parsed] == made
    assert {uuid.version for uuid in parsed} == {4}
    assert {uuid.variant for uuid in parsed} == {RFC_4122}
    assert {text[19] for text in made} == set("89ab")
    assert len(set(made)) == 1000


def test_threads_get_different_uuids() -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.extend([new_uuid() for _ in range(2000)]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)

    assert len(made) == len(set(made)) == 8000


FORKING = """
import os
from mycelia.wire import new_uuid
new_uuid()  # so that a batch is ready
child = os.fork()
os.write(1, f"{new_uuid()}\\n".encode())  # one write: the two may come together
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_does_not_repeat_its_parents_uuids() -> None:
    """In a process of its own, because eventlet, imported here for comparison, warns of forks."""
    platform = str(Path(mycelia.errors.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", FORKING],
        env={**os.environ, "PYTHONPATH": platform},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )

    made = done.stdout.split()
    assert len(made) == 2
    assert made[0] != made[1]


def test_call_id_is_service_method_and_uuid() -> None:
    service_and_method, uuid = call_id("planes", "get").rsplit(".", 1)

    assert service_and_method == "planes.get"
    assert UUID(uuid).version == 4


@pytest.mark.parametrize("parents", [0, 1, 9, 10, 11, 30])
@pytest.mark.parametrize("tracked", [None, 0, 1, 3, 10])
def test_stack_is_as_long_as_stock_namekos(parents: int, tracked: int | None) -> None:
    stack = [f"svc.m.{n}" for n in range(parents)]
    theirs = stock.call_id_stack(stack, tracked)

    ours = extend_call_stack(
        stack, theirs[-1], **({} if tracked is None else {"parent_calls_tracked": tracked})
    )

    assert ours == theirs


@pytest.mark.parametrize("stack", [None, "svc.m.1", 7, {"a": 1}])
def test_stack_that_is_not_a_list_counts_as_empty(stack: Any) -> None:
    assert extend_call_stack(stack, "svc.m.2") == ["svc.m.2"]


def test_given_stack_is_left_as_it_is() -> None:
    stack = ["a"]

    extend_call_stack(stack, "b")

    assert stack == ["a"]
