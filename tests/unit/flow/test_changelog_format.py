"""Which entries of a changelog are followed: the same by all, whatever else is written there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycelia.flow.changelog_format import (
    ChangeHead,
    ChangelogGap,
    ChangeMark,
    ChangeRegister,
    SnapshotEnd,
    SnapshotReader,
    SnapshotRows,
    heads_of,
    highest,
    in_pieces,
    read_head,
)
from mycelia.flow.state_file import FlowCheckpoint

Entry = tuple[ChangeHead, bytes]


def claim(name: str, epoch: int, **more: Any) -> Entry:
    return ChangeHead(kind="claim", claim=name, epoch=epoch, **more), b""


def commit(name: str, number: int, body: bytes = b"", **more: Any) -> Entry:
    return ChangeHead(kind="commit", claim=name, number=number, **more), body


def followed(
    entries: list[Entry], mark: ChangeMark | None = None, begin: int = 0
) -> list[tuple[str, int, bytes]]:
    register = ChangeRegister(mark or ChangeMark())
    found = []
    for offset, (head, body) in enumerate(entries[begin:], begin):
        change = register.read(head, body, offset)
        if change is not None:
            found.append((head.claim, head.number, change.body))
    return found


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Entry], list[Entry]]:
    """What owners have written while each was the owner, and the same with what comes late and again."""
    clean: list[Entry] = []
    real: list[Entry] = []
    number = 0
    for epoch in range(1, draw(st.integers(1, 4)) + 1):
        name = f"owner-{epoch}"
        before = list(clean)
        turn = [claim(name, epoch)]
        for _ in range(draw(st.integers(0, 3))):
            number += 1
            pieces = draw(st.integers(1, 3))
            turn += [
                commit(name, number, b"%d.%d" % (number, piece), piece=piece, pieces=pieces)
                for piece in range(pieces)
            ]
        clean += turn
        for at, one in enumerate(turn):
            real.append(one)
            if draw(st.booleans()):  # some of what this owner has written comes again
                real += turn[draw(st.integers(0, at)) : at + 1]
            if before and draw(st.booleans()):
                real.append(draw(st.sampled_from(before)))
            if epoch > 1 and draw(st.booleans()):  # a former owner goes on
                real.append(commit(f"owner-{epoch - 1}", draw(st.integers(1, 9)), b"late"))
            if draw(st.booleans()):
                real.append(claim("late", draw(st.integers(0, epoch))))
    return clean, real


@given(logs())
def test_what_comes_late_or_again_changes_nothing(log: tuple[list[Entry], list[Entry]]) -> None:
    clean, real = log
    wanted = [one for one in followed(clean) if one[1]]
    assert [number for _, number, _ in wanted] == list(range(1, len(wanted) + 1))
    assert [one for one in followed(real) if one[1]] == wanted


@given(logs(), st.data())
def test_who_begins_behind_any_entry_follows_the_same(
    log: tuple[list[Entry], list[Entry]], data: st.DataObject
) -> None:
    _, real = log
    register = ChangeRegister(ChangeMark())
    marks: list[ChangeMark] = []
    for offset, (head, body) in enumerate(real):
        if register.read(head, body, offset) is not None:
            marks.append(register.mark)
    at = data.draw(st.integers(0, len(marks) - 1))
    # From the entry itself, as a file is brought on; it has been followed already.
    rest = followed(real, marks[at], marks[at].offset)
    assert rest == followed(real)[at + 1 :]


def test_of_two_claims_of_one_epoch_the_first_is_followed() -> None:
    log = [claim("a", 3), claim("b", 3), commit("b", 1), commit("a", 1), claim("c", 2)]
    assert followed(log) == [("a", 0, b""), ("a", 1, b"")]


def test_missing_commit_is_told() -> None:
    with pytest.raises(ChangelogGap, match="commit 3 comes behind commit 1"):
        followed([claim("a", 1), commit("a", 1), commit("a", 3)])


def test_commit_of_which_a_piece_is_missing_is_not_followed() -> None:
    parts = [commit("a", 1, b"x", piece=piece, pieces=3) for piece in range(3)]
    assert followed([claim("a", 1), parts[0], parts[2]]) == [("a", 0, b"")]
    assert followed([claim("a", 1), parts[0], claim("b", 2), parts[1], parts[2]]) == [
        ("a", 0, b""),
        ("b", 0, b""),
    ]


def test_newest_snapshot_is_noted_and_an_older_word_of_one_is_not() -> None:
    register = ChangeRegister(ChangeMark())
    log = [
        claim("a", 1),
        commit("a", 1, begin=5, snapshot="new"),
        claim("b", 2, begin=3, snapshot="old"),
        commit("b", 2),
    ]
    for offset, (head, body) in enumerate(log):
        register.read(head, body, offset)
    assert (register.mark.begin, register.mark.snapshot) == (5, "new")


@given(st.binary(max_size=50), st.integers(1, 9))
def test_pieces_are_the_whole(body: bytes, size: int) -> None:
    pieces = in_pieces(body, size)
    assert b"".join(pieces) == body
    assert all(len(one) <= size for one in pieces)


def test_rows_of_a_snapshot_come_in_order_and_its_end_says_how_many() -> None:
    encode = msgspec.msgpack.encode
    rows = [SnapshotRows([("s", b"%d" % n, b"v")]) for n in range(3)]
    end = SnapshotEnd(
        batches=3,
        size_bytes=1,
        epoch=1,
        claim="a",
        number=1,
        checkpoint=FlowCheckpoint(generation="g"),
        next_number=1,
    )
    log = [
        (ChangeHead(kind="state", claim="a", number=n, snapshot="one"), encode(one))
        for n, one in enumerate(rows)
    ]
    last = (ChangeHead(kind="end", claim="a", snapshot="one"), encode(end))
    other = (ChangeHead(kind="state", claim="a", number=1, snapshot="two"), b"\xff")

    reader = SnapshotReader("one")
    taken = [reader.read(*one) for one in [log[0], other, log[0], log[1], commit("a", 9), log[2]]]
    assert [one for one in taken if one is not None] == rows
    assert reader.end is None
    assert reader.read(*last) is None
    assert reader.end == end

    cut = SnapshotReader("one")
    for one in (log[0], log[2], last):
        cut.read(*one)
    assert cut.end is None


def test_pieces_have_heads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mycelia.flow.changelog_format.PIECE_BYTES", 2)
    head, _ = commit("a", 1)
    found = [(one.piece, one.pieces, part) for one, part in heads_of(head, b"12345")]
    assert found == [(0, 3, b"12"), (1, 3, b"34"), (2, 3, b"5")]
    assert list(heads_of(head, b"1")) == [(head, b"1")]


@given(
    st.one_of(
        st.none(),
        st.dictionaries(
            st.sampled_from(ChangeHead.__struct_fields__),
            st.integers() | st.text(max_size=3),
            max_size=4,
        ),
    )
)
def test_headers_of_others_are_no_head(headers: dict[str, Any] | None) -> None:
    head = read_head(headers)
    assert head is None or 0 <= head.piece < head.pieces


def test_heads_are_read_as_they_are_written() -> None:
    head, _ = commit("a", 2**40, piece=1, pieces=2)
    assert read_head({**msgspec.structs.asdict(head), "x-stream-offset": 5}) == head
    assert read_head({**msgspec.structs.asdict(head), "piece": 2}) is None


def test_highest_is_told_of_a_log_with_gaps() -> None:
    log = [
        claim("a", 3),
        commit("a", 4, epoch=3),
        commit("a", 9, epoch=3),
        claim("late", 2),
        commit("late", 30, epoch=2),
        commit("b", 11, epoch=5),
    ]
    mark = highest(head for head, _ in log)
    assert (mark.epoch, mark.claim, mark.number) == (5, "b", 11)
