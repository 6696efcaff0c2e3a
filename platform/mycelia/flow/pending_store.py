"""A store as it will be once the commit that is under way is done, so that the engine need not wait for it. Pure but for the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mycelia.flow.state import Changes, StoreReader

__all__ = ["PendingStore"]


class PendingStore:
    """Answers what is about to be written with what will be there, all else with what the store says.

    The engine's thread reads and `expect()`s; whoever commits calls `settled()`, in any thread. There is one commit at a time.
    """

    def __init__(self, store: StoreReader) -> None:
        self._store = store
        self._pending: Mapping[str, Mapping[bytes, bytes | None]] = {}

    def expect(self, changes: Changes) -> None:
        """These are about to be written."""
        self._pending = changes

    def settled(self) -> None:
        """They are in the store."""
        self._pending = {}

    def read(self, space: str, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        # Looked at once: it may be settled meanwhile, which changes no answer.
        pending = self._pending.get(space)
        if not pending:
            return self._store.read(space, keys)
        missing = [key for key in keys if key not in pending]
        kept = dict(zip(missing, self._store.read(space, missing), strict=True)) if missing else {}
        return [pending[key] if key in pending else kept[key] for key in keys]

    def scan(self, space: str, most: int | None = None) -> Iterable[tuple[bytes, bytes]]:
        assert not self._pending, "an engine begins between two commits"
        return self._store.scan(space, most)
