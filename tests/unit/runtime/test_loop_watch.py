"""When the event loop counts as blocked."""

from __future__ import annotations

from mycelia.runtime.loop_watch import BEAT, Begun, Blockages, Over


class Process:
    """A process as seen from the watching thread, on a clock that the test drives."""

    def __init__(self, after: float = 1.0) -> None:
        self.now = self.beat_at = 100.0
        self.cpu = 5.0
        self.blockages = Blockages(after, self.now, self.cpu)
        self.said: list[Begun | Over] = []

    def look(self) -> None:
        found = self.blockages.look(self.now, self.beat_at, self.cpu)
        if found is not None:
            self.said.append(found)

    def run(self, seconds: float, *, beats: bool, works: bool = False) -> None:
        """Time goes by, with a look, and a beat if the loop is free, every `BEAT` seconds."""
        for _ in range(round(seconds / BEAT)):
            self.now += BEAT
            self.cpu += BEAT if works else 0.0
            if beats:
                self.beat_at = self.now
            self.look()

    def pass_unseen(self, seconds: float, *, works: bool) -> None:
        """Time in which not even the watching thread runs."""
        self.now += seconds
        self.cpu += seconds if works else 0.0


def test_free_loop_is_not_reported() -> None:
    process = Process()
    process.run(60, beats=True)

    assert process.said == []


def test_each_blockage_is_reported_once_and_once_when_it_is_over() -> None:
    process = Process()
    for _ in range(2):
        process.run(5, beats=False)
        process.run(5, beats=True)

    begun, over = process.said[:2]
    assert isinstance(begun, Begun)
    assert isinstance(over, Over)
    assert 1.0 <= begun.seconds <= 1.0 + BEAT
    assert 5.0 - BEAT <= over.seconds <= 5.0 + BEAT
    assert [type(one) for one in process.said] == [Begun, Over, Begun, Over]


def test_blockage_below_the_limit_is_not_reported() -> None:
    process = Process()
    for _ in range(10):
        process.run(1.0, beats=False)
        process.run(BEAT, beats=True)

    assert process.said == []


def test_code_that_holds_the_interpreter_is_a_blockage_although_nobody_could_look() -> None:
    process = Process()
    process.pass_unseen(5, works=True)
    process.look()
    process.run(1, beats=True)

    begun, over = process.said
    assert isinstance(begun, Begun)
    assert isinstance(over, Over)
    assert begun.seconds == 5 - BEAT


def test_process_that_was_stopped_or_starved_was_not_blocked() -> None:
    process = Process()
    process.pass_unseen(3600, works=False)
    process.look()
    process.run(10, beats=True)

    assert process.said == []


def test_loop_that_stays_silent_after_a_stop_is_blocked() -> None:
    process = Process()
    process.pass_unseen(3600, works=False)
    process.look()
    process.run(2, beats=False)

    (begun,) = process.said
    assert begun.seconds < 2


def test_stop_during_a_blockage_does_not_end_it() -> None:
    process = Process()
    process.run(2, beats=False)
    process.pass_unseen(3600, works=False)
    process.look()
    process.run(1, beats=True)

    assert [type(one) for one in process.said] == [Begun, Over]
