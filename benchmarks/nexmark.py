"""Nexmark: an auction house's persons, auctions and bids, the same for each event number, and its queries as flows.

The generator follows the published rules (proportions 1 : 3 : 46, hot auctions, sellers and bidders, ids that lead by ten), but for two
faults: ours is seeded by the event's id, so that any part of the stream can be made anew, where theirs is not seeded; and a bidder's id is
a person's, where theirs has the first person's id added twice. Texts have Nexmark's lengths and are of letters.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from mycelia.durations import Duration
from mycelia.flow import (
    Aggregation,
    FileSink,
    KeyContext,
    KeyedStream,
    Stream,
    WindowResult,
    aggregation,
    collect,
    count,
    distinct,
    hopping,
    json_lines,
    max_of,
    mean,
    min_of,
    session,
    source,
    sum_of,
    together,
    tumbling,
)

__all__ = ["QUERIES", "Auction", "Bid", "Nexmark", "Person"]

BASE_MS: Final = 1_436_918_400_000
"""2015-07-15T00:00:00Z."""

FIRST_ID: Final = 1000
FIRST_CATEGORY: Final = 10
EPOCH: Final = 50
PERSONS, AUCTIONS = 1, 3
"""Of the fifty events of an epoch; the others are bids."""

FIRST_NAMES: Final = [
    "Peter",
    "Paul",
    "Luke",
    "John",
    "Saul",
    "Vicky",
    "Kate",
    "Julie",
    "Sarah",
    "Deiter",
    "Walter",
]
LAST_NAMES: Final = [
    "Shultz",
    "Abrams",
    "Spencer",
    "White",
    "Bartels",
    "Walton",
    "Smith",
    "Jones",
    "Noris",
]
CITIES: Final = [
    "Phoenix",
    "Los Angeles",
    "San Francisco",
    "Boise",
    "Portland",
    "Bend",
    "Redmond",
    "Seattle",
    "Kent",
    "Cheyenne",
]
STATES: Final = ["AZ", "CA", "ID", "OR", "WA", "WY"]
HOT_CHANNELS: Final = ("Google", "Facebook", "Baidu", "Apple")


class Person(msgspec.Struct, frozen=True):
    id: int
    name: str
    email: str
    credit_card: str
    city: str
    state: str
    at_ms: int
    extra: str


class Auction(msgspec.Struct, frozen=True):
    id: int
    item_name: str
    description: str
    initial_bid: int
    reserve: int
    at_ms: int
    expires_ms: int
    seller: int
    category: int
    extra: str


class Bid(msgspec.Struct, frozen=True):
    auction: int
    bidder: int
    price: int
    channel: str
    url: str
    at_ms: int
    extra: str


Event = Person | Auction | Bid


class _Chance:
    """splitmix64, seeded by an event's id."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF

    def next(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        return z ^ (z >> 31)

    def below(self, bound: int) -> int:
        return self.next() % bound

    def of(self, choices: Any) -> Any:
        return choices[self.below(len(choices))]

    def price(self) -> int:
        return round(10 ** (self.next() / 2**64 * 6) * 100)

    def text(self, length: int) -> str:
        bits = self.next()
        return "".join(chr(97 + (bits >> shift % 59) % 26) for shift in range(length))


class Nexmark:
    """The events by their numbers.

    Args:
        rate: events a second, in event time.
        group: events of each group of so many come in another order than that of their times; 1 for none.
    """

    def __init__(self, rate: int = 10_000, group: int = 1) -> None:
        self.rate = rate
        self.group = group

    @property
    def disorder_ms(self) -> int:
        """How much earlier than the latest before it an event may be."""
        return 0 if self.group == 1 else self.group * 1000 // self.rate + 1

    def event(self, number: int) -> Event:
        """The event that comes as `number`, from 0."""
        group = self.group
        one = number // group * group + number * 953 % group
        chance, at_ms, place = _Chance(one), self.time_ms(one), one % EPOCH
        if place < PERSONS:
            return self._person(one, chance, at_ms)
        if place < PERSONS + AUCTIONS:
            return self._auction(one, chance, at_ms)
        return self._bid(one, chance, at_ms)

    def events(self, count: int) -> list[Event]:
        return [self.event(number) for number in range(count)]

    def time_ms(self, one: int) -> int:
        return BASE_MS + one * 1_000_000 // self.rate // 1000

    def _person(self, one: int, chance: _Chance, at_ms: int) -> Person:
        name = f"{chance.of(FIRST_NAMES)} {chance.of(LAST_NAMES)}"
        return Person(
            _last_person(one) + FIRST_ID,
            name,
            f"{chance.text(7)}@{chance.text(5)}.com",
            " ".join(f"{chance.below(10_000):04}" for _ in range(4)),
            chance.of(CITIES),
            chance.of(STATES),
            at_ms,
            chance.text(100),
        )

    def _auction(self, one: int, chance: _Chance, at_ms: int) -> Auction:
        last = _last_person(one)
        hot = chance.below(4) > 0
        seller = last // 100 * 100 if hot else _recent_person(one, chance)
        initial = chance.price()
        horizon = self.time_ms(one + 100 * EPOCH // AUCTIONS) - at_ms
        return Auction(
            _last_auction(one) + FIRST_ID,
            chance.text(chance.below(20)),
            chance.text(chance.below(100)),
            initial,
            initial + chance.price(),
            at_ms,
            at_ms + 1 + chance.below(max(2 * horizon, 1)),
            seller + FIRST_ID,
            FIRST_CATEGORY + chance.below(5),
            chance.text(300),
        )

    def _bid(self, one: int, chance: _Chance, at_ms: int) -> Bid:
        last = _last_auction(one)
        if chance.below(2) > 0:
            auction = last // 100 * 100
        else:
            lowest = max(last - 100, 0)
            auction = lowest + chance.below(last - lowest + 1 + 10)
        hot = chance.below(4) > 0
        bidder = _last_person(one) // 100 * 100 + 1 if hot else _recent_person(one, chance)
        price = chance.price()
        channel, suffix = self._channel(chance)
        url = f"https://www.nexmark.com/{chance.text(3)}/{chance.text(3)}/{chance.text(3)}/item.htm?query=1{suffix}"
        return Bid(
            auction + FIRST_ID, bidder + FIRST_ID, price, channel, url, at_ms, chance.text(20)
        )

    def _channel(self, chance: _Chance) -> tuple[str, str]:
        """Its name, and what of it is in the bid's URL."""
        if chance.below(2) > 0:
            return str(chance.of(HOT_CHANNELS)), ""
        number = chance.below(10_000)
        mirrored = int(f"{number:032b}"[::-1], 2)
        has_id = chance.below(10) > 0
        return (
            f"channel-{number}",
            f"&channel_id={min(mirrored, 2**32 - mirrored)}" if has_id else "",
        )


def _last_person(one: int) -> int:
    """The number of the newest person as of an event, from 0."""
    return one // EPOCH


def _recent_person(one: int, chance: _Chance) -> int:
    """One of the thousand newest persons, or one of the ten that are still to come."""
    persons = _last_person(one) + 1
    active = min(persons, 1000)
    return persons - active + chance.below(active + 10)


def _last_auction(one: int) -> int:
    """The number of the newest auction as of an event, from 0; below that, before the first."""
    epoch, place = divmod(one, EPOCH)
    if place < PERSONS:
        return (epoch - 1) * AUCTIONS + AUCTIONS - 1
    return epoch * AUCTIONS + min(place - PERSONS, AUCTIONS - 1)


# --- the queries ----------------------------------------------------------------------------------


def _events(disorder_ms: int) -> Stream[Event]:
    return source("events", Event).event_time(
        lambda event: event.at_ms, unit="ms", disorder=disorder_ms / 1000
    )


def _is_bid(event: Event) -> Any:
    return isinstance(event, Bid)


def bids(events: Stream[Any]) -> Stream[Bid]:
    return events.filter(_is_bid)


def q0(events: Stream[Any]) -> Stream[Any]:
    """Bids, as they are."""
    return bids(events).map(lambda bid: (bid.auction, bid.bidder, bid.price, bid.at_ms))


def q1(events: Stream[Any]) -> Stream[Any]:
    """Prices in another currency."""
    return bids(events).map(lambda bid: (bid.auction, bid.bidder, 0.908 * bid.price, bid.at_ms))


def q2(events: Stream[Any]) -> Stream[Any]:
    """Bids for some auctions."""
    return (
        bids(events)
        .filter(lambda bid: bid.auction % 123 == 0)
        .map(lambda bid: (bid.auction, bid.price))
    )


def q3(events: Stream[Any]) -> Stream[Any]:
    """Who sells in one category and three states: an unbounded join."""
    auctions = events.filter(lambda event: isinstance(event, Auction) and event.category == 10)
    persons = events.filter(
        lambda event: isinstance(event, Person) and event.state in ("OR", "ID", "CA")
    )
    return (
        auctions.key_by(lambda auction: auction.seller)
        .join_interval(persons.key_by(lambda person: person.id), before="3650d", after="3650d")
        .map(lambda pair: (pair[1].name, pair[1].city, pair[1].state, pair[0].id))
    )


class Bidding(msgspec.Struct):
    """What is known of an auction: itself, and the bids that came for it."""

    auction: Auction | None = None
    bids: list[Bid] = []


def _bidding(context: KeyContext[int, Bidding], event: Auction | Bid) -> Iterator[Any]:
    if isinstance(event, Auction):
        context.state.auction = event
        context.set_timer(event.expires_ms + 1)
    else:
        context.state.bids.append(event)
        context.set_timer(event.at_ms + 60_000_000, "unknown")  # a bid for what is never sold
    yield from ()


def _closed(context: KeyContext[int, Bidding], name: str) -> Iterator[tuple[Auction, Bid]]:
    auction = context.state.auction
    if auction is None:
        if name == "unknown":
            context.clear()
        return
    if name == "":
        valid = [
            bid for bid in context.state.bids if auction.at_ms <= bid.at_ms <= auction.expires_ms
        ]
        if valid:
            yield auction, min(valid, key=lambda bid: (-bid.price, bid.at_ms, bid.bidder))
    context.clear()


def closed_auctions(events: Stream[Any]) -> Stream[tuple[Auction, Bid]]:
    """Each auction that had a bid, with the highest, of several the earliest, as it closes."""
    return (
        events.filter(lambda event: not isinstance(event, Person))
        .key_by(lambda event: event.id if isinstance(event, Auction) else event.auction)
        .process(_bidding, state=Bidding, on_timer=_closed)
    )


class Mean(msgspec.Struct):
    total: int = 0
    count: int = 0


def _running_mean(context: KeyContext[int, Mean], price: int) -> Iterator[tuple[int, float]]:
    context.state.total += price
    context.state.count += 1
    yield context.key, context.state.total / context.state.count


def q4(events: Stream[Any]) -> Stream[Any]:
    """The mean of the closing prices of each category, so far."""
    return (
        closed_auctions(events)
        .key_by(lambda closed: closed[0].category)
        .map(lambda closed: closed[1].price)
        .process(_running_mean, state=Mean)
    )


def q5(events: Stream[Any]) -> Stream[Any]:
    """The auctions with most bids in the last ten seconds, every two."""
    counts = (
        bids(events)
        .key_by(lambda bid: bid.auction)
        .window(hopping("10s", every="2s"))
        .aggregate(count())
    )
    # The results of one hop have one event time, its last moment, and no two hops are in the same two seconds.
    return counts.key_by(lambda _: 0).window(tumbling("2s")).aggregate(collect()).flat_map(_hottest)


def _hottest(window: WindowResult[int, list[WindowResult[int, int]]]) -> list[tuple[int, int, int]]:
    most = max(one.value for one in window.value)
    return [(one.start_ms, one.key, most) for one in window.value if one.value == most]


def _last_ten(
    context: KeyContext[int, list[tuple[int, int, int]]], closed: tuple[Auction, Bid]
) -> Iterator[tuple[int, float]]:
    auction, bid = closed
    context.state = sorted([*context.state, (auction.expires_ms, auction.id, bid.price)])[-10:]
    yield context.key, sum(one[2] for one in context.state) / len(context.state)


def q6(events: Stream[Any]) -> Stream[Any]:
    """The mean of the last ten closing prices of each seller, so far."""
    return (
        closed_auctions(events)
        .key_by(lambda closed: closed[0].seller)
        .process(_last_ten, state=list)
    )


def _highest() -> Aggregation[Bid, list[Bid]]:
    def best(bids: list[Bid]) -> list[Bid]:
        most = max(bid.price for bid in bids)
        return [bid for bid in bids if bid.price == most]

    return aggregation(of=best, merge=lambda a, b: best(a + b), result=list, name="highest")


def q7(events: Stream[Any]) -> Stream[Any]:
    """The highest bids of each ten seconds."""
    return (
        bids(events)
        .key_by(lambda _: 0)
        .window(tumbling("10s"))
        .aggregate(_highest())
        .flat_map(
            lambda window: [(bid.auction, bid.price, bid.bidder, bid.at_ms) for bid in window.value]
        )
    )


def q8(events: Stream[Any]) -> Stream[Any]:
    """Who came and opened an auction in the same ten seconds."""
    persons = events.filter(lambda event: isinstance(event, Person)).key_by(
        lambda person: person.id
    )
    auctions = events.filter(lambda event: isinstance(event, Auction)).key_by(
        lambda auction: auction.seller
    )
    return (
        persons.join_window(auctions, tumbling("10s"))
        .filter(lambda joined: joined.index == 0)
        .map(lambda joined: (joined.key, joined.value[0].name, joined.start_ms))
    )


def q9(events: Stream[Any]) -> Stream[Any]:
    """The winning bid of each auction."""
    return closed_auctions(events).map(
        lambda closed: (closed[0].id, closed[1].bidder, closed[1].price, closed[1].at_ms)
    )


class LoggedBid(msgspec.Struct, frozen=True):
    """A bid with the day and the minute whose file it is in."""

    auction: int
    bidder: int
    price: int
    at_ms: int
    extra: str
    dt: str
    hm: str


def q10(events: Stream[Any]) -> Stream[LoggedBid]:
    """Bids, for files by day and minute: `q10_files()`."""

    def logged(bid: Bid) -> LoggedBid:
        at = datetime.fromtimestamp(bid.at_ms / 1000, UTC)
        day, minute = at.date().isoformat(), f"{at:%H:%M}"
        return LoggedBid(bid.auction, bid.bidder, bid.price, bid.at_ms, bid.extra, day, minute)

    return bids(events).map(logged)


def q10_files(directory: Path, every: Duration, max_records: int) -> FileSink[LoggedBid]:
    """Where the bids of `q10()` go: `dt=2015-07-15/hm=00:00/….jsonl`."""
    by = lambda bid: (f"dt={bid.dt}", f"hm={bid.hm}")  # noqa: E731
    return json_lines(directory, every=every, max_records=max_records, by=by)


def q11(events: Stream[Any]) -> Stream[Any]:
    """How many bids each bidder makes in a session."""
    return (
        bids(events)
        .key_by(lambda bid: bid.bidder)
        .window(session("10s"))
        .aggregate(count())
        .map(lambda w: (w.key, w.value, w.start_ms, w.end_ms))
    )


def _counted(context: KeyContext[int, dict[int, int]], bid: Bid) -> Iterator[Any]:
    start = context.now_ms - context.now_ms % 10_000
    context.state[start] = context.state.get(start, 0) + 1
    context.set_wall_timer(start + 10_000)
    yield from ()


def _window_over(
    context: KeyContext[int, dict[int, int]], name: str
) -> Iterator[tuple[int, int, int, int]]:
    for start in sorted(context.state):
        if start + 10_000 <= context.now_ms:
            yield context.key, context.state.pop(start), start, start + 10_000
    if not context.state:
        context.clear()


def q12(events: Stream[Any]) -> Stream[Any]:
    """How many bids of each bidder come in each ten seconds on the wall."""
    keyed = bids(events).key_by(lambda bid: bid.bidder)
    return keyed.process(_counted, state=dict, on_timer=_window_over)


SIDE_INPUT: Final = {number: f"side {number}" for number in range(10_000)}


def q13(events: Stream[Any]) -> Stream[Any]:
    """Bids with what a file says of their auctions."""
    return bids(events).map(
        lambda bid: (bid.auction, bid.bidder, bid.price, SIDE_INPUT[bid.auction % 10_000])
    )


def q14(events: Stream[Any]) -> Stream[Any]:
    """Bids of a range of prices, with the time of day and a letter counted."""

    def judged(bid: Bid) -> tuple[Any, ...]:
        hour = bid.at_ms // 3_600_000 % 24
        day = (
            "dayTime"
            if 8 <= hour <= 18
            else "nightTime"
            if hour <= 6 or hour >= 20
            else "otherTime"
        )
        return bid.auction, bid.bidder, 0.908 * bid.price, day, bid.at_ms, bid.extra.count("c")

    return bids(events).filter(lambda bid: 1_000_000 < 0.908 * bid.price < 50_000_000).map(judged)


def _rank(bid: Bid) -> int:
    return 1 if bid.price < 10_000 else 2 if bid.price < 1_000_000 else 3


def _how_many(rank: int) -> Aggregation[Bid, int]:
    return sum_of(lambda bid: int(_rank(bid) == rank))


def _distinct(field: str, rank: int) -> Aggregation[Bid, int]:
    """How many values a field has among the bids of a rank."""

    def of(bids: list[Bid]) -> set[int]:
        return {getattr(bid, field) for bid in bids if _rank(bid) == rank}

    return aggregation(of=of, merge=lambda a, b: a | b, result=len, name=f"distinct {field}")


def _ranked(keyed: KeyedStream[Any, Bid]) -> KeyedStream[Any, Any]:
    """Of each key and day: bids, bidders and auctions, all of them and by rank."""
    parts: list[Aggregation[Any, Any]] = [count(), *map(_how_many, (1, 2, 3))]
    for field in ("bidder", "auction"):
        parts += [distinct(field), *(_distinct(field, rank) for rank in (1, 2, 3))]
    return keyed.window(tumbling("1d")).aggregate(together(*parts))


def q15(events: Stream[Any]) -> Stream[Any]:
    """Figures of each day."""
    return _ranked(bids(events).key_by(lambda _: 0)).map(lambda w: (w.start_ms, *w.value))


def q16(events: Stream[Any]) -> Stream[Any]:
    """Figures of each channel and day."""
    return _ranked(bids(events).key_by(lambda bid: bid.channel)).map(
        lambda w: (w.key, w.start_ms, *w.value)
    )


def q17(events: Stream[Any]) -> Stream[Any]:
    """Prices of each auction and day."""
    parts: list[Aggregation[Any, Any]] = [count(), *map(_how_many, (1, 2, 3))]
    parts += [min_of("price"), max_of("price"), mean("price"), sum_of("price")]
    return (
        bids(events)
        .key_by(lambda bid: bid.auction)
        .window(tumbling("1d"))
        .aggregate(together(*parts))
        .map(lambda w: (w.key, w.start_ms, *w.value))
    )


def _newest(context: KeyContext[Any, list[Bid]], bid: Bid) -> Iterator[tuple[Any, ...]]:
    if not context.state or bid.at_ms >= context.state[0].at_ms:
        context.state = [bid]
        yield context.key, bid.price, bid.at_ms


def q18(events: Stream[Any]) -> Stream[Any]:
    """The last bid of each bidder for each auction, so far."""
    keyed = bids(events).key_by(lambda bid: (bid.bidder, bid.auction))
    return keyed.process(_newest, state=list)


def _top_ten(context: KeyContext[int, list[int]], bid: Bid) -> Iterator[tuple[int, ...]]:
    before = context.state
    context.state = sorted([*before, bid.price], reverse=True)[:10]
    if context.state != before:
        yield context.key, *context.state


def q19(events: Stream[Any]) -> Stream[Any]:
    """The ten highest bids for each auction, so far."""
    return bids(events).key_by(lambda bid: bid.auction).process(_top_ten, state=list)


def q20(events: Stream[Any]) -> Stream[Any]:
    """Bids with their auctions, of one category: an unbounded join."""
    auctions = events.filter(lambda event: isinstance(event, Auction) and event.category == 10)
    return (
        bids(events)
        .key_by(lambda bid: bid.auction)
        .join_interval(auctions.key_by(lambda auction: auction.id), before="3650d", after="3650d")
        .map(lambda pair: (pair[0].auction, pair[0].bidder, pair[0].price, pair[1].seller))
    )


CHANNELS: Final = {"apple": "0", "google": "1", "facebook": "2", "baidu": "3"}


def q21(events: Stream[Any]) -> Stream[Any]:
    """Bids with the number of their channel, from its name or the URL."""

    def numbered(bid: Bid) -> tuple[Any, ...]:
        _, _, of_url = bid.url.partition("channel_id=")
        return bid.auction, bid.bidder, bid.price, CHANNELS.get(bid.channel.lower(), of_url)

    return bids(events).map(numbered).filter(lambda row: row[3])


def q22(events: Stream[Any]) -> Stream[Any]:
    """Bids with the folders of their URLs."""
    return bids(events).map(
        lambda bid: (bid.auction, bid.bidder, bid.price, *bid.url.split("/")[3:6])
    )


QUERIES: Final = {
    query.__name__: query
    for query in (
        *(
            q0,
            q1,
            q2,
            q3,
            q4,
            q5,
            q6,
            q7,
            q8,
            q9,
            q10,
            q11,
            q12,
            q13,
            q14,
            q15,
            q16,
            q17,
            q18,
            q19,
            q20,
            q21,
            q22,
        ),
    )
}
"""Of q10 what its files have, and q12 by the time on the wall."""


def query(name: str, disorder_ms: int) -> Stream[Any]:
    """A query over the source "events"."""
    return QUERIES[name](_events(disorder_ms))
