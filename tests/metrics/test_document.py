"""docs/metrics.md says what the code does: its keys, its metrics."""

from __future__ import annotations

import re

from tests.docs.documents import ROOT, table_rows

from mycelia.providers.metrics.told import DESCRIPTIONS
from mycelia.runtime.settings import BUCKETS, MetricsSection

DOCUMENT = (ROOT / "docs" / "metrics.md").read_text("utf-8")


def section(heading: str) -> str:
    return DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]


def test_keys_are_those_of_the_section_with_their_defaults() -> None:
    rows = list(table_rows(DOCUMENT.split("\n## ")[0]))[1:]
    defaults = {row[0].strip("`"): row[2].strip("`") for row in rows}
    told = {
        name: {None: "null", True: "true"}.get(default, str(default))
        for name, default in zip(
            MetricsSection.__struct_fields__, MetricsSection.__struct_defaults__, strict=True
        )
        if name != "buckets"
    }

    assert defaults == told | {"buckets": f"1 ms to 60 s, in {len(BUCKETS)} steps"}
    assert (BUCKETS[0], BUCKETS[-1]) == (0.001, 60)


def test_every_metric_is_in_the_table() -> None:
    named = set(re.findall(r"`(mycelia_\w+)`", section("What is counted")))
    known = {name for name in DESCRIPTIONS if not name.startswith("mycelia_link_")}

    assert {name.removesuffix("_total") for name in named if "link" not in name} == known
    link = section("What is counted").split("`mycelia_link_…_total`")[1].split("\n")[0]
    counters = {f"mycelia_link_{name}" for name in re.findall(r"`(\w+)`", link)}
    assert counters | {"mycelia_link_state", "mycelia_link_unconfirmed"} == {
        name for name in DESCRIPTIONS if name.startswith("mycelia_link_")
    }
