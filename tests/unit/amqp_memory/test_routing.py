"""Topic patterns against a plain reading of what they mean."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mycelia.amqp.memory.routing import matches

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=5)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "#"]), max_size=6)


def plainly_matches(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(plainly_matches(pattern[1:], words[at:]) for at in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and plainly_matches(pattern[1:], words[1:])


@given(PATTERNS, WORDS)
def test_topic_pattern_matches_what_it_says(pattern: list[str], words: list[str]) -> None:
    found = matches("topic", ".".join(pattern), {}, ".".join(words), {})

    assert found == plainly_matches(pattern, words)


def test_many_hashes_do_not_take_for_ever() -> None:
    pattern = ".".join(["#", "a"] * 40 + ["b"])

    assert not matches("topic", pattern, {}, ".".join(["a"] * 200), {})


def test_x_headers_count_only_where_the_binding_says_so() -> None:
    headers = {"x-kind": "late", "carrier": "AA"}

    assert matches("headers", "", {"x-match": "all", "x-kind": "other"}, "", headers)
    assert not matches("headers", "", {"x-match": "all-with-x", "x-kind": "other"}, "", headers)
    assert matches("headers", "", {"x-match": "any-with-x", "x-kind": "late"}, "", headers)
    assert not matches("headers", "", {"x-match": "any", "x-kind": "late"}, "", headers)
