"""The examples in `contracts/flights/README.md` are what the services say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from services.flights.dataset import read_slice
from services.flights.delay_book import DelayBook
from tests.services.pipeline_by_hand import enriched_events

README = Path(__file__).parents[2] / "contracts" / "flights" / "README.md"
RUN = "20261122T154001.123456-ab12"
FLIGHT = "2013-02-11-B6-1053-JFK"


def examples() -> list[dict[str, Any]]:
    blocks = re.findall(r"```json\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    return [json.loads(block) for block in blocks if '"error"' not in block]


@pytest.fixture(scope="module")
def events() -> list[Any]:
    return enriched_events(read_slice(), run=RUN, emitted_at=1795362001.25)


def test_examples_are_true(events: list[Any]) -> None:
    book = DelayBook(RUN)
    for event in events:
        book.count(event, 1795362001.3)
    (enriched,) = (e for e in events if (e["flight_id"], e["kind"]) == (FLIGHT, "arrived"))
    arrived, added, request, hour, leg = examples()

    assert arrived.items() <= enriched.items()
    assert enriched | {"enriched_at": 1795362001.26} == arrived | added
    assert request == {"args": [], "kwargs": {"n": 1}}
    assert hour in book.hourly("JFK", "B6")
    assert leg in book.aircraft("N238JB")["legs"]
