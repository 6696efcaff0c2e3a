"""How much a body may become: what small bodies could make of themselves, and honest data that must pass.

Memory is measured with `tracemalloc`, not time: what a decoder makes it has to allocate.
"""

from __future__ import annotations

import bz2
import json
import lzma
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.wire.values import nested, rich

from mycelia.errors import UndecodableMessage
from mycelia.wire import JSON, MSGPACK, SerializerRegistry
from mycelia.wire.bounds import Bounds, bounds_for, check_json

MIB = 1024 * 1024
REGISTRY = SerializerRegistry(accept=["json", "msgpack"])


def peak_of(decode: Callable[[], Any]) -> tuple[str, int]:
    """The refusal that decoding ends in, and the most memory that it took."""
    tracemalloc.start()
    try:
        with pytest.raises(UndecodableMessage) as raised:
            decode()
        return str(raised.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- compressed bombs ------------------------------------------------------------------------------

METHODS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
}
try:
    from backports import zstd
except ImportError:  # as little is there in most services
    pass
else:
    METHODS["application/zstd"] = zstd.compress

of_each_method = pytest.mark.parametrize("method", METHODS)


@of_each_method
def test_body_is_unpacked_no_further_than_its_limit(method: str) -> None:
    bomb = METHODS[method](bytes(64 * MIB))
    registry = SerializerRegistry(max_body_bytes=2 * MIB)
    assert len(bomb) < 80_000

    said, peak = peak_of(
        lambda: registry.decode(bomb, "application/data", "binary", {"compression": method})
    )

    assert said.startswith(f"the body of {len(bomb)} bytes is more than {2 * MIB} bytes")
    assert peak < 24 * MIB  # the limit, a step beyond it, and what the method keeps for itself


@of_each_method
@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 17])
def test_unpacking_step_by_step_gives_the_whole(method: str, size: int) -> None:
    plain = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    registry = SerializerRegistry(max_body_bytes=4 * MIB)

    read = registry.decode(
        METHODS[method](plain), "application/data", "binary", {"compression": method}
    )

    assert read == plain


@of_each_method
@given(plain=st.binary(max_size=300), cut=st.integers(1, 20))
def test_unpacking_gives_the_body_or_our_error(method: str, plain: bytes, cut: int) -> None:
    packed = METHODS[method](plain)
    headers = {"compression": method}

    assert REGISTRY.decode(packed, None, "binary", headers) == plain
    with pytest.raises(UndecodableMessage, match=r"is cut off|is not application"):
        REGISTRY.decode(packed[:-cut], None, "binary", headers)


def test_body_that_hardly_compresses_is_unpacked_in_many_pieces() -> None:
    import random

    plain = random.Random(1).randbytes(700_000)
    packed = zlib.compress(plain)

    headers = {"compression": "application/x-gzip"}
    assert REGISTRY.decode(packed, None, "binary", headers) == plain


def test_lzma_body_cannot_ask_for_gigabytes() -> None:
    wants_3_gib = lzma.compress(
        b"[]", format=lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": MIB}]
    )
    greedy = wants_3_gib[:1] + (3 * 1024 * MIB).to_bytes(4, "little") + wants_3_gib[5:]

    with pytest.raises(UndecodableMessage, match="Memory usage limit exceeded"):
        REGISTRY.decode(greedy, "application/json", "utf-8", {"compression": "application/x-lzma"})


# --- bodies that become much -----------------------------------------------------------------------

JSON_PIECES = [b"[],", b"{},", b'{"a":1},', b"[[0]],", b'"ab",', b"1,", b'{"":[{}]},']


@pytest.mark.parametrize("piece", JSON_PIECES, ids=bytes.decode)
def test_small_body_that_unpacks_to_ten_million_values_is_refused_unmade(piece: bytes) -> None:
    plain = b"[" + piece * (29_000_000 // len(piece)) + b"0]"
    bomb = zlib.compress(plain)
    assert len(bomb) < 120_000

    said, peak = peak_of(
        lambda: REGISTRY.decode(
            bomb, "application/json", "utf-8", {"compression": "application/x-gzip"}
        )
    )

    assert "Send less in one message, or raise mycelia.max_body_bytes" in said
    assert peak < 3 * len(plain)  # the unpacked text, joined from its parts; no objects


@pytest.mark.long_variants("\\x90", "\\x91\\xc0", "\\x81\\xa0\\xc0")
@pytest.mark.parametrize("piece", [b"\x90", b"\x80", b"\x91\xc0", b"\x81\xa0\xc0", b"\xa1a"])
def test_small_msgpack_that_unpacks_to_millions_of_values_is_refused_early(piece: bytes) -> None:
    count = 4_000_000 // len(piece)
    plain = b"\xdd" + count.to_bytes(4, "big") + piece * count
    bomb = zlib.compress(plain)

    said, peak = peak_of(
        lambda: REGISTRY.decode(
            bomb, "application/x-msgpack", "binary", {"compression": "application/x-gzip"}
        )
    )

    assert "more than the limit of" in said
    assert peak < 250 * MIB  # a million of the dearest, and the outermost list


def test_body_sent_as_it_is_may_hold_a_list_for_each_32_bytes_of_the_limit() -> None:
    registry = SerializerRegistry(max_body_bytes=32_000, accept=["json", "msgpack"])

    for serializer in (JSON, MSGPACK):
        fits = serializer.encode([[]] * 999)
        assert registry.decode(fits, serializer.content_type) == [[]] * 999
        with pytest.raises(
            UndecodableMessage, match=r"holds at least 1001 lists and maps, more than .* 1000"
        ):
            registry.decode(serializer.encode([{}] * 1000), serializer.content_type)


@pytest.mark.parametrize("depth", [30_000, 1_000_000])
@pytest.mark.parametrize(
    ("content_type", "piece"),
    [
        ("application/json", b"["),
        ("application/json", b'{"a":'),
        ("application/json", b'[{"a":['),
        ("application/x-msgpack", b"\x91"),
        ("application/x-msgpack", b"\x81\xa0"),
        ("application/x-msgpack", b"\xdd\x7f\xff\xff\xff"),
    ],
)
def test_deep_body_is_refused_at_its_first_levels(
    content_type: str, piece: bytes, depth: int
) -> None:
    body = piece * depth

    said, peak = peak_of(lambda: REGISTRY.decode(body, content_type))

    assert f"a body of {len(body)} bytes " in said
    assert peak < 4 * len(body) + 8 * MIB


def test_announced_lengths_are_not_believed() -> None:
    """A list of 60,000 in a list of 60,000 …, five bytes each: msgpack makes room for each before it looks."""
    body = (b"\xdd" + (60_000).to_bytes(4, "big")) * 1000
    body += b"\xc0" * (65_536 - len(body))

    said, peak = peak_of(lambda: REGISTRY.decode(body, "application/x-msgpack"))

    assert "is not application/x-msgpack" in said
    assert peak < MIB


# --- honest data -----------------------------------------------------------------------------------

RECORD = {"id": 123456, "name": "Ada [of] {Lovelace}, countess", "at": "2026-01-02", "x": 1.25}


@pytest.mark.parametrize(
    "piece",
    [
        b"1,",
        b"12345.678,",
        b'"a",',
        b'"a text, of [some] {length}, with \\"quotes\\", and so on",',
        json.dumps(RECORD).encode() + b",",
        json.dumps([RECORD, json.dumps(RECORD)]).encode() + b",",
    ],
    ids=["digits", "numbers", "letters", "texts", "records", "json in json"],
)
def test_as_much_text_or_as_many_numbers_or_records_as_fit_are_let_through(piece: bytes) -> None:
    body = b"[" + piece * (16 * MIB // len(piece)) + b"0]"

    check_json(body, bounds_for(len(body)))


def test_brackets_and_commas_in_a_text_do_not_count() -> None:
    body = json.dumps({"csv": '1,[2],{3},"4\\",' * 300_000, "more": "[" * 2_000_000}).encode()

    check_json(body, Bounds(max_containers=1, max_values=3))
    with pytest.raises(UndecodableMessage, match="holds at least 2 values, more than the limit"):
        check_json(body, Bounds(max_containers=1, max_values=1))


def test_records_that_compress_well_pass() -> None:
    value = [{**RECORD, "id": n, "seat": f"{n % 40}{'ABCDEF'[n % 6]}"} for n in range(60_000)]
    plain = JSON.encode(value)
    packed = zlib.compress(plain, 9)
    assert len(plain) / len(packed) > 15

    for method, body in (
        ("application/x-gzip", packed),
        ("application/x-bz2", bz2.compress(plain)),
    ):
        assert REGISTRY.decode(body, "application/json", None, {"compression": method}) == value


@given(value=nested(rich))
def test_count_without_decoding_is_the_count_of_what_is_decoded(value: Any) -> None:
    def count(part: Any) -> tuple[int, int]:
        """Containers; and values, a container's first part not counted apart from it."""
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        inner = [count(p) for p in parts]
        is_container = isinstance(part, dict | list)
        return (
            is_container + sum(c for c, _ in inner),
            is_container + max(len(inner) - 1, 0) + sum(v for _, v in inner),
        )

    body = json.dumps(value, default=str).encode()
    containers, values = count(json.loads(body))

    check_json(body, Bounds(containers, values))
    for bounds in (Bounds(containers - 1, values), Bounds(containers, values - 1)):
        if bounds.max_containers < containers <= 0 or bounds.max_values < values <= 0:
            continue
        if min(bounds.max_containers, bounds.max_values) >= 0:
            with pytest.raises(UndecodableMessage):
                check_json(body, bounds)


@given(value=nested(rich))
def test_msgpack_within_generous_bounds_is_msgpack(value: Any) -> None:
    body = MSGPACK.encode(value)

    assert MSGPACK.decode_within is not None
    assert MSGPACK.decode_within(body, bounds_for(MIB)) == MSGPACK.decode(body) == value


@pytest.mark.parametrize("padding", [0, 10_000])
def test_msgpack_with_tags_is_read_with_and_without_bounds(padding: int) -> None:
    from decimal import Decimal

    value = {"price": Decimal("1.50"), "padding": [1] * padding}
    body = MSGPACK.encode(value)

    assert MSGPACK.decode_within is not None
    assert MSGPACK.decode_within(body, bounds_for(10 * MIB)) == MSGPACK.decode(body) == value
    with pytest.raises(UndecodableMessage, match=r"is not application/x-msgpack"):
        MSGPACK.decode(body + b"\x01")
    assert msgpack.unpackb(body)["padding"] == [1] * padding
