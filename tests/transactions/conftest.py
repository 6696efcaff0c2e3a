"""A database of its own for each test: SQLite in a file, and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from tests.transactions.bank import Base

from mycelia import Outbox


def _sqlite(path: Path) -> str:
    return f"sqlite:///{path / 'bank.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLAlchemy's URL of an empty database, with a driver that blocks."""
    if request.param == "sqlite":
        return _sqlite(tmp_path)
    uri: str = request.getfixturevalue("postgres_uri")
    return uri.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def async_url(url: str) -> str:
    """The same database, with a driver for the event loop."""
    return url.replace("sqlite://", "sqlite+aiosqlite://")


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """The database with all tables, for the test's own look at it."""
    more = {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else {}
    engine = sa.create_engine(url, **more)
    Base.metadata.create_all(engine)
    Outbox.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session
