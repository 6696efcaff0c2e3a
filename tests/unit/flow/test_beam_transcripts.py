"""Apache Beam's trigger transcripts, run against our windows.

They say, for a window, a trigger and a history of records and watermarks, which results come when. The file is in Beam's wheel and is read
from there: `scripts/beam-transcripts` fetches it. A transcript that says what our windows do not is listed below with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import re
import zipfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tools import not_run
from tests.unit.flow.batches import columns, taken

from mycelia.flow import WindowResult, after, collect, session, source, tumbling
from mycelia.flow.graph import Building
from mycelia.flow.operators import Operator

ROOT = Path(__file__).parents[3]
MEMBER = "apache_beam/testing/data/trigger_transcripts.yaml"

NAMES = [
    *("fixed_default", "fixed_default_late_data", "fixed_drop_late_data_after_allowed_lateness"),
    *("timestamp_combiner_earliest", "timestamp_combiner_latest"),
    *(
        "timestamp_combiner_custom_timestamping_eow",
        "timestamp_combiner_custom_timestamping_earliest",
    ),
    "timestamp_combiner_custom_timestamping_earliest (2)",
    *("early_late_sessions", "discarding_early_fixed", "garbage_collection"),
    *("known_late_data_watermark", "known_late_data_no_watermark_hold_possible"),
    *("bad_output", "bad_expected_values", "bad_expected_window"),
    *("missing_output", "missing_output_at_end"),
]

NOT_SUPPORTED = {
    "garbage_collection": (
        "a trigger that fires once and then drops what its window gets (AfterCount as the whole trigger): here every window gives "
        "a result as it closes, so that no record is dropped"
    ),
}

OTHER_TIMES = {
    "timestamp_combiner_earliest": "OUTPUT_AT_EARLIEST",
    "timestamp_combiner_latest": "OUTPUT_AT_LATEST",
    "timestamp_combiner_custom_timestamping_earliest": "OUTPUT_AT_EARLIEST",
    "timestamp_combiner_custom_timestamping_earliest (2)": "OUTPUT_AT_EARLIEST_TRANSFORMED",
    "known_late_data_watermark": "OUTPUT_AT_EARLIEST",
    "known_late_data_no_watermark_hold_possible": "OUTPUT_AT_EARLIEST",
}
"""Run but for the event time of their results, which Beam lets the user choose. Ours is always the window's last moment: an earlier one
would have to hold back the watermark of all that comes after."""


def text_of_transcripts() -> str | None:
    """Of an installed apache-beam (which is not imported), or of a wheel of it; None if there is neither."""
    found = importlib.util.find_spec("apache_beam")
    if found is not None and found.submodule_search_locations:
        file = Path(found.submodule_search_locations[0]).parent / MEMBER
        if file.exists():
            return file.read_text("utf-8")
    folder = Path(os.environ.get("MYCELIA_BEAM_WHEELS", ROOT / ".mycelia" / "beam"))
    for wheel in sorted(folder.glob("apache_beam-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER).decode()
    return None


@lru_cache(maxsize=1)
def transcripts() -> dict[str, dict[str, Any]]:
    text = text_of_transcripts()
    if text is None:
        not_run(
            "the transcripts of apache-beam are not there: scripts/beam-transcripts fetches them"
        )
    found: dict[str, dict[str, Any]] = {}
    for one in yaml.safe_load_all(text):
        name = one["name"] if one["name"] not in found else f"{one['name']} (2)"
        found[name] = one
    return found


def windows_of(spec: dict[str, Any]) -> Operator:
    """The transcript's windows, as ours; a unit of its time is a millisecond."""
    window = spec.get("window_fn") or spec["windowfn"]
    kind = re.fullmatch(
        r"(FixedWindows|Sessions|CustomTimestampingFixedWindowsWindowFn)\((\d+)\)", window
    )
    assert kind is not None, window
    size = int(kind[2]) / 1000
    trigger = spec.get("trigger_fn", "Default")
    assert trigger == "Default" or trigger.startswith("AfterWatermark("), trigger
    counts = dict(re.findall(r"(early|late)=AfterCount\((\d+)\)", trigger))
    stream = (
        source("in", int)
        .key_by(lambda time: "key")
        .window(
            session(size) if kind[1] == "Sessions" else tumbling(size),
            lateness=spec.get("allowed_lateness", 0) / 1000,
            emit=after(int(counts["early"])) if "early" in counts else "close",
            late=after(int(counts.get("late", 1))),
            mode="discard" if spec.get("accumulation_mode") == "discarding" else "accumulate",
        )
        .aggregate(collect())
    )
    node, _ = stream.port
    assert node.make is not None
    return node.make(Building("windows", [], None))


class Transcript:
    """Runs one, and compares what comes with what is expected, as Beam's own runner does."""

    def __init__(self, spec: dict[str, Any], *, with_times: bool) -> None:
        self.steps = spec["transcript"]
        self.with_times = with_times
        self.windows = windows_of(spec)
        self.told: Counter[tuple[int, int]] = Counter()
        """How many results that were not early a window has given: Beam's `nonspeculative_index`."""
        self.pending: list[dict[str, Any]] = []

    def run(self) -> None:
        for step in self.steps:
            ((action, argument),) = step.items()
            if action == "expect":
                self.expect(argument)
                continue
            assert not self.pending, f"Unexpected output: {self.pending} before {step}"
            if action == "input":
                self.windows.process(0, columns([("key", time, time) for time in argument]))
            elif action == "watermark":
                self.windows.advance(argument)
            else:
                raise AssertionError(f"unknown action {action}")
            self.pending = [self.described(result) for result in taken(self.windows)]
        assert not self.pending, f"Unexpected output: {self.pending} at the end"

    def described(self, result: WindowResult[str, list[int]]) -> dict[str, Any]:
        window = (result.start_ms, result.end_ms - 1)
        pane = {
            "window": list(window),
            "values": sorted(result.value),
            "timestamp": result.end_ms - 1,
            "early": result.timing == "early",
            "late": result.timing == "late",
            "final": result.is_final,
            "index": result.index,
            "nonspeculative_index": -1 if result.timing == "early" else self.told[window],
        }
        self.told[window] += result.timing != "early"
        return pane

    def expect(self, wanted: list[dict[str, Any]]) -> None:
        for pane in wanted:
            asked = {
                name: value
                for name, value in pane.items()
                if self.with_times or name != "timestamp"
            }
            if "values" in asked:
                asked["values"] = sorted(asked["values"])
            found = [
                one
                for one in self.pending
                if all(one[name] == value for name, value in asked.items())
            ]
            assert found, f"Unmatched output: {asked} is not among {self.pending}"
            self.pending.remove(found[0])


def test_these_are_all_transcripts_that_beam_has() -> None:
    assert list(transcripts()) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_SUPPORTED])
def test_windows_do_what_the_transcript_says(name: str) -> None:
    spec = transcripts()[name]
    transcript = Transcript(spec, with_times=name not in OTHER_TIMES)

    if "error" in spec:  # an example of what a runner has to find
        with pytest.raises(AssertionError, match=spec["error"]):
            transcript.run()
    else:
        transcript.run()


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_what_is_not_supported_is_so_still(name: str) -> None:
    with pytest.raises(AssertionError):
        Transcript(transcripts()[name], with_times=True).run()


@pytest.mark.parametrize("name", OTHER_TIMES)
def test_times_of_results_are_the_end_of_their_windows_and_not_what_beam_lets_choose(
    name: str,
) -> None:
    spec = transcripts()[name]
    assert spec["timestamp_combiner"] == OTHER_TIMES[name]
    if (
        name != "known_late_data_no_watermark_hold_possible"
    ):  # where Beam itself falls back to the end
        with pytest.raises(AssertionError, match="Unmatched output"):
            Transcript(spec, with_times=True).run()
