"""What a link declares again."""

from __future__ import annotations

from mycelia.amqp.model import Binding, Exchange, Queue
from mycelia.amqp.topology import Topology, in_order


def test_distinct_parts_are_remembered_once() -> None:
    topology = Topology()
    topology.remember([Queue("q", arguments={"x": 1}), Queue("q", arguments={"x": 1})])
    topology.remember([Queue("q", arguments={"x": 2})])

    assert topology.split()[0] == [
        Queue("q", arguments={"x": 1}),
        Queue("q", arguments={"x": 2}),
    ]


def test_parts_come_after_what_they_refer_to() -> None:
    binding, queue, exchange = Binding("q", "e", "k"), Queue("q"), Exchange("e")

    assert in_order([binding, queue, exchange]) == [exchange, queue, binding]


def test_passive_parts_are_not_kept() -> None:
    topology = Topology()
    topology.remember([Queue("q", passive=True), Exchange("e", passive=True)])

    assert topology.split() == ([], [])


def test_exclusive_queues_and_their_bindings_are_set_apart() -> None:
    topology = Topology()
    own = Queue("own", exclusive=True)
    topology.remember([Exchange("e"), Queue("q"), own, Binding("own", "e", "k")])

    shared, exclusive = topology.split()

    assert shared == [Exchange("e"), Queue("q")]
    assert exclusive == [own, Binding("own", "e", "k")]
    assert topology.is_exclusive("own")
    assert not topology.is_exclusive("q")


def test_binding_to_an_exclusive_queue_declared_earlier_is_set_apart() -> None:
    topology = Topology()
    topology.remember([Queue("own", exclusive=True)])

    assert topology.split([Binding("own", "e", "k")]) == ([], [Binding("own", "e", "k")])


def test_forgotten_parts_are_gone() -> None:
    topology = Topology()
    topology.remember([Exchange("e"), Queue("q"), Binding("q", "e", "k"), Queue("r")])

    topology.forget([Exchange("e"), Exchange("never")])
    topology.forget_queue("q")

    assert topology.split() == ([Queue("r")], [])


def test_default_exchange_is_never_declared() -> None:
    assert Topology().split([Exchange("", "direct"), Queue("q")]) == ([Queue("q")], [])


def test_what_may_have_gone_by_itself_is_not_in_use() -> None:
    topology = Topology()
    kept = Queue("kept")
    passing = [Queue("auto", auto_delete=True), Queue("expiring", arguments={"x-expires": 1})]
    bindings = [Binding(one.name, "e", "k") for one in (kept, *passing)]
    topology.remember([*bindings, *passing, kept, Exchange("e")])

    assert topology.in_use([]) == [kept, Exchange("e"), bindings[0]]


def test_what_is_consumed_here_is_in_use_with_its_bindings() -> None:
    topology = Topology()
    queue, binding = Queue("auto", auto_delete=True), Binding("auto", "e", "k")
    topology.remember([Exchange("e"), queue, binding])

    assert topology.in_use(["auto"]) == [Exchange("e"), queue, binding]
    assert topology.in_use(["another"]) == [Exchange("e")]


def test_auto_delete_exchange_is_in_use_while_something_of_ours_is_bound_to_it() -> None:
    topology = Topology()
    exchange = Exchange("passing", auto_delete=True)
    queue = Queue("expiring", arguments={"x-expires": 1})
    binding = Binding("expiring", "passing", "k")
    topology.remember([exchange, queue, binding])

    assert topology.in_use(["expiring"]) == [exchange, queue, binding]
    assert topology.in_use([]) == []


def test_default_and_direct_exchanges_lead_to_streams_that_are_remembered() -> None:
    topology = Topology()
    stream = Queue("log-0", arguments={"x-queue-type": "stream"})
    topology.remember([stream, Queue("work"), Exchange("log", type="direct"), Exchange("events")])
    topology.remember(
        [Binding("log-0", "log", "0"), Binding("work", "log", "1"), Binding("log-0", "events", "#")]
    )

    assert topology.leads_to_stream("", "log-0")
    assert topology.leads_to_stream("log", "0")
    assert not topology.leads_to_stream("", "work")
    assert not topology.leads_to_stream("log", "1")
    assert not topology.leads_to_stream("events", "#")

    topology.forget([stream])

    assert not topology.leads_to_stream("", "log-0")
    assert not topology.leads_to_stream("log", "0")
