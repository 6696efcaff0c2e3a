"""Options: each declared once, merged once, and a wrong name is told with the right one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mycelia.call import (
    DEFAULT_CALL_OPTIONS,
    DEFAULT_PUBLISH_OPTIONS,
    CallArguments,
    CallOptions,
    PublishArguments,
    PublishOptions,
    with_options,
)
from mycelia.call.options import NEEDLESS
from mycelia.errors import ConfigError


@pytest.mark.parametrize(
    ("record", "arguments", "needless"),
    [
        (CallOptions, CallArguments, frozenset()),
        (PublishOptions, PublishArguments, NEEDLESS),
    ],
)
def test_keyword_arguments_are_the_record_s_fields(
    record: type[msgspec.Struct], arguments: Any, needless: frozenset[str]
) -> None:
    fields = dict(record.__annotations__)
    typed = {name: ref.__forward_arg__ for name, ref in arguments.__annotations__.items()}

    assert set(typed) - needless == set(fields)
    assert {name: typed[name] for name in fields} == fields


def test_given_options_go_over_the_base_and_the_rest_stays() -> None:
    base = with_options(DEFAULT_PUBLISH_OPTIONS, {"mandatory": True, "priority": 2}, "here")

    merged = with_options(base, {"priority": 5, "retry": True}, "there")

    assert (merged.mandatory, merged.priority, merged.delivery_mode) == (True, 5, 2)
    assert with_options(base, {}, "there") is base


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"timout": 2}, "here: unknown option timout; did you mean timeout?"),
        (
            {"colour": 1},
            "here: unknown option colour. Known: compression, context, headers, priority, serializer, timeout.",
        ),
        (
            {"retry": True},
            "here: unknown option retry. Known: compression, context, headers, priority, serializer, timeout.",
        ),
    ],
)
def test_unknown_option_is_told_with_what_there_is(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        with_options(DEFAULT_CALL_OPTIONS, given, "here")

    assert str(refused.value) == text
