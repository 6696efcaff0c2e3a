"""What operators keep between batches: live objects over a plain store of bytes. Pure.

A store maps `(space, key)` to bytes; a space is one operator's, or the engine's own. It is read with many keys at once, and
written once a checkpoint with all that changed, in one transaction. SQLite and PostgreSQL fit under it as one table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from mycelia.errors import StateIncompatible, describe
from mycelia.flow.equal_keys import key_state
from mycelia.flow.state_codec import decode_state, encode_state, encode_states

__all__ = ["Changes", "KeyedState", "MemoryStore", "StateStore", "StoreReader", "UnkeptKey"]

V = TypeVar("V")

Changes = dict[str, dict[bytes, bytes | None]]
"""What one checkpoint writes: of each space the keys with their new bytes, None for those that are gone."""


class UnkeptKey(StateIncompatible):
    """A key that cannot be kept, or whose state cannot: it is of a type that has no bytes."""

    def __init__(self, step: str, key: Any, error: BaseException) -> None:
        told = str(error) if isinstance(error, StateIncompatible) else f"{describe(error)}."
        super().__init__(
            f'step "{step}", key {key!r:.80}: what is kept of it cannot be written: {told}'
        )


class StoreReader(Protocol):
    """What an engine asks of a store."""

    def read(self, space: str, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The bytes of each key, in their order; None for one that is not there."""

    def scan(self, space: str, most: int | None = None) -> Iterable[tuple[bytes, bytes]]:
        """All that a space holds, or `most` of it, in any order."""


class StateStore(StoreReader, Protocol):
    """What a runner asks of it as well."""

    def write(self, changes: Mapping[str, Mapping[bytes, bytes | None]]) -> None:
        """Take all of the changes, or, if it fails, none of them."""


class MemoryStore:
    """A store in this process: for tests, and for flows that may begin anew."""

    def __init__(self) -> None:
        self._spaces: dict[str, dict[bytes, bytes]] = {}

    def read(self, space: str, keys: Sequence[bytes]) -> list[bytes | None]:
        held = self._spaces.get(space, {})
        return [held.get(key) for key in keys]

    def scan(self, space: str, most: int | None = None) -> list[tuple[bytes, bytes]]:
        return list(islice(self._spaces.get(space, {}).items(), most))

    def write(self, changes: Mapping[str, Mapping[bytes, bytes | None]]) -> None:
        for space, items in changes.items():
            held = self._spaces.setdefault(space, {})
            for key, value in items.items():
                if value is None:
                    held.pop(key, None)
                else:
                    held[key] = value

    def __len__(self) -> int:
        return sum(map(len, self._spaces.values()))


class KeyedState(Generic[V]):
    """One operator's state by key, as live objects; what the store holds is read when a key is met.

    An operator calls `load()` with a batch's keys, works on `live` as on any dictionary, and tells `touch()` which keys it changed
    or removed.

    Args:
        plain: what is encoded of a value, made of what `encode_state()` takes.
        restored: the value of that.
        keep: how many keys stay in memory after a checkpoint; with more, all leave it and are read again when met.
    """

    def __init__(
        self,
        space: str,
        store: StoreReader | None,
        plain: Callable[[V], Any],
        restored: Callable[[Any], V],
        keep: int = 1_000_000,
    ) -> None:
        self.space = space
        self.live: dict[Any, V] = {}
        self._store = store
        self._plain = plain
        self._restored = restored
        self._keep = keep
        self._dirty: set[Any] = set()

    def load(self, keys: Iterable[Any]) -> dict[Any, V]:
        """`live`, with all that the store has of `keys`: read at most once for a batch."""
        store = self._store
        if store is not None:
            live = self.live
            missing = [key for key in keys if key not in live and key not in self._dirty]
            if missing:
                found = store.read(self.space, self._keys(missing))
                for key, data in zip(missing, found, strict=True):
                    if data is not None:
                        live[key] = self._read(key, data)
        return self.live

    def _keys(self, keys: Iterable[Any]) -> list[bytes]:
        """
        Raises:
            UnkeptKey: one of them has no bytes.
        """
        made: list[bytes] = []
        for key in keys:
            try:
                made.append(key_state(key))
            except BaseException as exc:
                raise UnkeptKey(self.space, key, exc) from exc
        return made

    def _read(self, key: Any, data: bytes) -> V:
        try:
            return self._restored(decode_state(data))
        except StateIncompatible as exc:
            raise StateIncompatible(f'step "{self.space}", key {key!r:.80}: {exc}') from exc

    def touch(self, keys: Iterable[Any]) -> None:
        """These have changed, or are gone from `live`."""
        self._dirty.update(keys)

    def take_changes(self) -> dict[bytes, bytes | None]:
        """What changed since the last time, as bytes. The caller writes it, or gives this object up.

        Raises:
            StateIncompatible: names the key that cannot be kept, or whose state cannot.
        """
        live = self.live
        try:
            dirty = self._dirty
            kept = dirty if dirty <= live.keys() else [key for key in dirty if key in live]
            values = encode_states(map(self._plain, map(live.__getitem__, kept)))
            changed: dict[bytes, bytes | None] = dict(
                zip(map(key_state, kept), values, strict=True)
            )
            if len(kept) < len(dirty):
                changed.update((key_state(key), None) for key in dirty if key not in live)
        except BaseException:
            for key in self._dirty:
                self._check(key)
            raise
        self._dirty.clear()
        if self._store is not None and len(live) > self._keep:
            live.clear()
        return changed

    def _check(self, key: Any) -> None:
        try:
            key_state(key)
            if key in self.live:
                encode_state(self._plain(self.live[key]))
        except BaseException as exc:
            raise UnkeptKey(self.space, key, exc) from exc
