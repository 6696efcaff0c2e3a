"""The code in docs/transactions.md runs, and does what the text around it says."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.docs.documents import ROOT, blocks_of

from mycelia import Outbox, Queue, consume, event_handler
from mycelia.logs import partition_of
from mycelia.testing import eventually, run_services

PAGE = ROOT / "docs" / "transactions.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files that the page shows, to be imported; with a database there."""
    names = [block.name for block in blocks_of(PAGE, "python")]
    for block in blocks_of(PAGE, "python"):
        (tmp_path / block.name).write_text(block.text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    if "bank" in sys.modules:
        sys.modules["bank"].engine.dispose()
    for name in names:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def bank(folder: Path) -> Any:
    """The page's first file, after its second: with its tables."""
    importlib.import_module("tables")
    return importlib.import_module("bank")


def entries(bank: Any) -> list[tuple[int, int]]:
    with bank.engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT number, amount FROM entries ORDER BY number"))
        return [tuple(row) for row in rows]


async def test_payment_is_an_entry_in_the_ledger(bank: Any) -> None:
    async with run_services(bank.Bank, bank.Ledger) as bed:
        await bed.client.call("bank", "pay", 1, 100)
        with pytest.raises(Exception, match="UNIQUE"):
            await bed.client.call("bank", "pay", 1, 100)
        await bed.client.call("bank", "pay", 2, 50)
        await bed.client.publish("bank", "paid", {"number": 3, "amount": 7}, message_id="m")
        await bed.client.publish("bank", "paid", {"number": 3, "amount": 7}, message_id="m")
        await eventually(lambda: entries(bank) == [(1, 100), (2, 50), (3, 7)])


async def test_async_methods_are_the_same_with_an_async_session(bank: Any) -> None:
    shop = importlib.import_module("async_bank")
    seen: list[tuple[str, Any]] = []

    class Others:
        name = "others"

        @event_handler("shop", "ordered")
        async def ordered(self, number: int) -> None:
            seen.append(("ordered", number))

        @event_handler("shop", "shipped")
        async def shipped(self, number: int) -> None:
            seen.append(("shipped", number))

        @consume(Queue("invoices"))
        async def invoice(self, body: Any) -> None:
            seen.append(("invoice", body))

    try:
        async with run_services(bank.Bank, shop.Shop, Others) as bed:
            message_id = await bed.client.call("shop", "order", 5, "Ada")
            await bed.client.call("bank", "pay", 5, 10)
            await eventually(lambda: len(seen) == 3)
    finally:
        await shop.engine.dispose()

    assert len(message_id) == 36
    assert sorted(seen, key=str) == [("invoice", {"number": 5}), ("ordered", 5), ("shipped", 5)]


async def test_what_tells_a_repetition_may_be_given(bank: Any) -> None:
    checkout = importlib.import_module("checkout")

    async with run_services(checkout.Checkout) as bed:
        assert await bed.client.call("checkout", "charge", 1, 10) is True
        assert await bed.client.call("checkout", "charge", 1, 10) is False


async def test_existing_services_have_it_beside_their_database(bank: Any) -> None:
    accounts = importlib.import_module("accounts")
    config = {"DB_URIS": {"accounts:Base": "sqlite:///bank.db"}}
    heard: list[Any] = []

    class Audit:
        name = "audit"

        @event_handler("accounts", "paid")
        async def paid(self, payment: Any) -> None:
            heard.append(payment["number"])

    async with run_services(accounts.Accounts, Audit, config=config) as bed:
        await bed.client.call("accounts", "pay", 1, 10)
        with pytest.raises(Exception, match="UNIQUE"):
            await bed.client.call("accounts", "pay", 1, 10)
        await bed.client.call("accounts", "pay", 2, 10)
        await eventually(lambda: heard == [1, 2])


async def test_statements_of_the_page_find_a_parked_row_and_free_it(bank: Any) -> None:
    (block,) = blocks_of(PAGE, "sql")
    look, free = [line for line in block.text.splitlines() if line]
    row = {
        "service": "bank",
        "kind": "message",
        "source": "nowhere",
        "name": "",
        "message_id": "m",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "body": b"1",
        "headers": b"\0\0\0\0",
        "options": b"\x80",
        "written_at": 0.0,
        "parked_at": 1.0,
        "reason": "no such exchange",
    }
    with bank.engine.begin() as connection:
        connection.execute(sa.insert(Outbox.metadata.tables["mycelia_outbox"]), row)
        (found,) = connection.execute(sa.text(look))
        assert found.reason == "no such exchange"
        connection.execute(sa.text(free))
        assert list(connection.execute(sa.text(look))) == []


async def test_booking_is_in_the_log_when_its_transaction_has_committed(bank: Any) -> None:
    journal = importlib.import_module("journal")
    try:
        async with run_services(journal.Journal) as bed:
            for amount in (1, 2):
                await bed.client.call("journal", "book", "Ada", amount)
            partition = partition_of("Ada", 4)
            async with journal.BOOKINGS.reader(bed.client.link, partition) as reader:
                found: list[Any] = []
                while len(found) < 2:
                    entry = await reader.take(20)
                    assert entry is not None
                    found += entry.values
    finally:
        journal.engine.dispose()

    assert found == [journal.Booking("Ada", 1), journal.Booking("Ada", 2)]
