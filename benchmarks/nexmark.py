"""Nexmark: an auction house's persons, auctions and bids, the same for each event number, and its queries as flows.

The generator follows the published rules (proportions 1 : 3 : 46, hot auctions, sellers and bidders, ids that lead by ten), but for two
faults: ours is seeded by the event's id, so that any part of the stream can be made anew, where theirs is not seeded; and a bidder's id is
a person's, where theirs has the first person's id added twice. Texts have Nexmark's lengths and are of letters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from mycelia.flow import (
    Aggregation,
    KeyContext,
    Stream,
    WindowResult,
    aggregation,
    collect,
    count,
    hopping,
    session,
    source,
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
        channel = (
            chance.of(HOT_CHANNELS) if chance.below(2) > 0 else f"channel-{chance.below(10_000)}"
        )
        url = f"https://www.nexmark.com/{chance.text(3)}/{chance.text(3)}/{chance.text(3)}/item.htm?query=1"
        return Bid(
            auction + FIRST_ID, bidder + FIRST_ID, price, channel, url, at_ms, chance.text(20)
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
    bids: list[tuple[int, int]] = []


def _bidding(context: KeyContext[int, Bidding], event: Auction | Bid) -> Iterator[Any]:
    if isinstance(event, Auction):
        context.state.auction = event
        context.set_timer(event.expires_ms + 1)
    else:
        context.state.bids.append((event.at_ms, event.price))
        context.set_timer(event.at_ms + 60_000_000, "unknown")  # a bid for what is never sold
    yield from ()


def _closed(context: KeyContext[int, Bidding], name: str) -> Iterator[tuple[Auction, int]]:
    auction = context.state.auction
    if auction is None:
        if name == "unknown":
            context.clear()
        return
    if name == "":
        prices = [
            price
            for at_ms, price in context.state.bids
            if auction.at_ms <= at_ms <= auction.expires_ms
        ]
        if prices:
            yield auction, max(prices)
    context.clear()


def closed_auctions(events: Stream[Any]) -> Stream[tuple[Auction, int]]:
    """Each auction that had a bid, with its highest, as it closes."""
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
        .map(lambda closed: closed[1])
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
    context: KeyContext[int, list[tuple[int, int, int]]], closed: tuple[Auction, int]
) -> Iterator[tuple[int, float]]:
    auction, price = closed
    context.state = sorted([*context.state, (auction.expires_ms, auction.id, price)])[-10:]
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


def q11(events: Stream[Any]) -> Stream[Any]:
    """How many bids each bidder makes in a session."""
    return (
        bids(events)
        .key_by(lambda bid: bid.bidder)
        .window(session("10s"))
        .aggregate(count())
        .map(lambda w: (w.key, w.value, w.start_ms, w.end_ms))
    )


QUERIES: Final = {query.__name__: query for query in (q0, q1, q2, q3, q4, q5, q6, q7, q8, q11)}


def query(name: str, disorder_ms: int) -> Stream[Any]:
    """A query over the source "events"."""
    return QUERIES[name](_events(disorder_ms))
