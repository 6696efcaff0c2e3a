"""A log line as data, and what it reads like as text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.log_event import as_plain, as_text, event


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "flight_late"),
        ({"tail": "N1", "delay_s": 4.5}, "flight_late tail=N1 delay_s=4.5"),
        ({"why": "late crew", "x": "", "y": "a=b"}, "flight_late why='late crew' x='' y='a=b'"),
        ({"text": "two\nlines"}, "flight_late text='two\\nlines'"),
        ({"confirmed": False, "after": None}, "flight_late confirmed=False after=None"),
        ({"error": OSError("no N1")}, "flight_late error='OSError: no N1'"),
        ({"name": "a field may be called name"}, "flight_late name='a field may be called name'"),
    ],
)
def test_a_structured_event_reads_well_as_text(fields: dict[str, Any], text: str) -> None:
    said = event("flight_late", **fields)

    assert str(said) == text


class Hostile:
    """Raises whatever it is asked."""

    def __str__(self) -> str:
        raise RecursionError

    __repr__ = __hash__ = __eq__ = __str__  # type: ignore[assignment]


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())  # surrogates included
    | st.binary()
    | st.builds(Hostile)
    | st.builds(ValueError, st.text(st.characters()) | st.builds(Hostile)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=20,
)


@given(value=anything)
def test_any_value_has_a_text_and_a_json_form_that_can_be_written(value: Any) -> None:
    as_text(value).encode()
    str(event("happened", value=value)).encode()
    json.dumps(as_plain(value), allow_nan=False, ensure_ascii=False).encode()
