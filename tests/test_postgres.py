"""The suite's own PostgreSQL: a database for each test, killed and back with what was committed."""

from __future__ import annotations

import psycopg
import pytest
from tests.postgres import PrivatePostgres, fresh_database


def test_each_test_has_a_database_of_its_own(postgres: PrivatePostgres, postgres_uri: str) -> None:
    with fresh_database(postgres) as other, psycopg.connect(other) as connection:
        connection.execute("CREATE TABLE flights (number text)")

    with psycopg.connect(postgres_uri) as connection:
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM flights")


def test_killed_server_comes_back_with_what_was_committed(own_postgres: PrivatePostgres) -> None:
    with fresh_database(own_postgres) as uri:
        with psycopg.connect(uri) as connection:
            connection.execute("CREATE TABLE flights (number text)")
            connection.execute("INSERT INTO flights VALUES ('UA 1545')")
        own_postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(uri)

        own_postgres.start()

        with psycopg.connect(uri) as connection:
            assert connection.execute("SELECT number FROM flights").fetchall() == [("UA 1545",)]
