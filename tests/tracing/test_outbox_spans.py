"""What leaves through an outbox is a part of the trace that it was emitted in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session
from tests.runtime.conftest import Serve
from tests.tracing.test_spans import traced

from mycelia import Client, Outbox, event_handler, rpc
from mycelia.testing import SpanReceiver


async def test_event_of_an_outbox_is_handled_in_the_trace_of_its_transaction(
    receiver: SpanReceiver, serve: Serve, uri: str, tmp_path: Path
) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'bank.db'}")

    class Bank:
        name = "bank"
        outbox = Outbox(engine, create_tables=True)

        @rpc
        def pay(self) -> None:
            with Session(engine) as session, session.begin():
                self.outbox(session).emit("paid", 1)

        @event_handler("bank", "paid")
        async def paid(self, number: Any) -> None: ...

    await serve(Bank, config={**traced(receiver), "AMQP_URI": uri})
    async with Client(uri, timeout=10) as client:
        await client.call("bank", "pay")
    await asyncio.to_thread(
        receiver.wait_for, lambda spans: any(span.kind == "CONSUMER" for span in spans)
    )
    engine.dispose()

    (paying,) = (span for span in receiver.spans if span.kind == "SERVER")
    (leaving,) = (span for span in receiver.spans if span.kind == "PRODUCER")
    (handling,) = (span for span in receiver.spans if span.kind == "CONSUMER")
    assert leaving.parent_id == paying.span_id
    assert handling.parent_id == leaving.span_id
    assert leaving.trace_id == handling.trace_id == paying.trace_id
