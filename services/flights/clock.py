"""From the clock times of the data to instants.

The data give local clock times as `hhmm` numbers (`517` is 5:17, `2400` is midnight at the end of the day) and delays in
minutes. A departure's clock is New York's, an arrival's is the destination's, and no arrival carries a date. The rules:

- scheduled departure: the flight's date and clock time in New York;
- scheduled arrival: the first time after the scheduled departure that the destination's clock shows `hhmm`;
- actual departure and arrival: the scheduled instant plus the delay. The delays are the truth: on the night the clocks change
  a printed clock time is ambiguous, a delay is not.

For all 336,776 flights of the year this gives back the printed actual times, but for one arrival in the night of 10 March
(`tests/services/test_dataset.py` checks it).
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

__all__ = ["NEW_YORK", "after", "hhmm", "iso", "local_instant", "next_local_instant"]

NEW_YORK = ZoneInfo("America/New_York")


def local_instant(day: date, clock: int, zone: ZoneInfo) -> datetime:
    """The UTC instant at which a clock in `zone` shows `clock` (`hhmm`, up to 2400) on `day`.

    A time that the change to daylight saving time skips counts on from before the change, so that 2:30 is
    3:30; of a time that comes twice it is the first.

    Raises:
        ValueError: `clock` is not a time of day.
    """
    hours, minutes = divmod(clock, 100)
    if not (0 <= clock <= 2400 and minutes < 60):
        raise ValueError(f"{clock} is not a clock time: expected hhmm from 0 to 2400.")
    wall = datetime.combine(day, time(tzinfo=zone)) + timedelta(hours=hours, minutes=minutes)
    return wall.astimezone(UTC)


def next_local_instant(start: datetime, clock: int, zone: ZoneInfo) -> datetime:
    """The first UTC instant after `start` at which a clock in `zone` shows `clock` (`hhmm`)."""
    day = start.astimezone(zone).date()
    instant = local_instant(day, clock, zone)
    # 2400 is the end of `day`, so the day before may hold a nearer one when `start` is just past midnight.
    if clock == 2400 and (earlier := local_instant(day - timedelta(days=1), clock, zone)) > start:
        return earlier
    return instant if instant > start else local_instant(day + timedelta(days=1), clock, zone)


def after(instant: datetime, delay_min: int) -> datetime:
    """`delay_min` minutes after `instant`; before it, if negative."""
    return instant + timedelta(minutes=delay_min)


def hhmm(instant: datetime, zone: ZoneInfo) -> int:
    """What a clock in `zone` shows at `instant`, as `hhmm` from 0 to 2359."""
    local = instant.astimezone(zone)
    return local.hour * 100 + local.minute


def iso(instant: datetime) -> str:
    """`instant`, which must be in UTC, as the events carry it: `2013-02-08T22:15:00Z`."""
    return instant.isoformat(timespec="seconds")[:19] + "Z"
