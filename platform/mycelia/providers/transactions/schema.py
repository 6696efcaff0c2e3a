"""Whether the tables are there: looked at when a service starts, so that it does not fail over it later."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mycelia.errors import ConfigError, text_of
from mycelia.log_event import event
from mycelia.providers.transactions.database import Database

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData

__all__ = ["Metadata", "prepare_tables"]

log = logging.getLogger("mycelia.outbox")


class Metadata:
    """The `MetaData` of the tables, as an attribute of a class that does not import SQLAlchemy."""

    def __get__(self, instance: object, owner: type | None = None) -> MetaData:
        from mycelia.providers.transactions.tables import METADATA

        return METADATA


async def prepare_tables(database: Database, who: str, *, create: bool) -> None:
    """See that the tables are there. A database that is away is no reason not to start: its relay waits for it.

    Raises:
        ConfigError: they are not, and are not to be created. The database is closed then.
    """
    try:
        await _prepare(database, who, create)
    except BaseException:
        await database.aclose()
        raise


async def _prepare(database: Database, who: str, create: bool) -> None:
    from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

    try:
        if create:
            try:
                await database.run(_create)
            except SQLAlchemyError:  # another instance may have created them in the same moment
                await database.run(_create)
            return
        missing = await database.run(_missing)
    except ProgrammingError as exc:  # it may not create them, for instance
        raise ConfigError(f"{who}: {database.shown}: {text_of(exc).splitlines()[0]}") from exc
    except (SQLAlchemyError, OSError) as exc:
        error = text_of(exc).partition("\n")[0]
        log.warning(event("database_away_at_start", database=database.shown, error=error))
        return
    if missing:
        raise ConfigError(
            f"{who}: there is no table {' and no table '.join(missing)} in {database.shown}. Create them by a migration, with "
            "Outbox.metadata.create_all(engine), or with create_tables=True."
        )


def _create(connection: Connection) -> None:
    from mycelia.providers.transactions.tables import METADATA

    METADATA.create_all(connection)


def _missing(connection: Connection) -> list[str]:
    from sqlalchemy import inspect

    from mycelia.providers.transactions.tables import METADATA

    there = set(inspect(connection).get_table_names())
    return sorted(set(METADATA.tables) - there)
