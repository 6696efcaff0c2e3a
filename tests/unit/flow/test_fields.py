"""A named field is an attribute's, or a mapping's key, whatever comes beside it in a batch."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import msgspec
import pytest

from mycelia.flow.column_batch import ColumnBatch
from mycelia.flow.fields import getter_for, getter_of
from mycelia.flow.stateless import FlowStep, Fused


class Row(msgspec.Struct):
    key: str


class Items(UserDict[str, Any]):
    """A mapping that is no dictionary, with an attribute of that name."""

    key = "the attribute"


ROWS = [Row("a"), {"key": "b"}, Items(key="c")]


@pytest.mark.parametrize("rows", [ROWS, *([one, one] for one in ROWS), []])
def test_a_field_is_an_attribute_s_or_a_mapping_s(rows: list[Any]) -> None:
    get = getter_of("key", "test")
    wanted = [one.key if isinstance(one, Row) else one["key"] for one in rows]

    assert list(map(get, rows)) == wanted
    assert list(map(getter_for(get, rows), rows)) == wanted
    assert get.__name__ == "key"


def test_keys_of_a_mixed_batch_are_all_found() -> None:
    step = Fused([FlowStep("key_by", "key_by", getter_of("key", "test"))])
    step.process(0, ColumnBatch([1, 2, 3], list(ROWS)))
    ((_, batch),) = step.out

    assert batch.keys == ["a", "b", "c"]
