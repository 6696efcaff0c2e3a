"""A batch that is being filled, and what waits for it. Pure but for the futures it settles."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mycelia.logs.append_call import Origins
from mycelia.logs.batch_format import encode_columns
from mycelia.logs.partitioning import key_bytes
from mycelia.logs.record import RecordHeaders, RecordKey

__all__ = ["Appending", "OpenBatch", "Piece"]


class Appending:
    """One append, of one record or many, on its way in one batch or several.

    Args:
        raises: whether `done` has the error of a batch that failed.
    """

    __slots__ = ("_error", "_left", "_raises", "done")

    def __init__(
        self, batches: int, loop: asyncio.AbstractEventLoop, *, raises: bool = True
    ) -> None:
        self._raises = raises
        self.done: asyncio.Future[None] = loop.create_future()
        self._left = batches
        self._error: Exception | None = None

    def settle(self, error: Exception | None) -> None:
        """One of its batches has been confirmed, or never will be."""
        self._left -= 1
        if error is not None and self._error is None and self._raises:
            self._error = error
        if self._left or self.done.done():
            return
        if self._error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(self._error)


class Piece:
    """Records of one partition that go into one batch together."""

    __slots__ = ("headers", "keys", "size", "times", "values")

    def __init__(
        self,
        keys: Sequence[RecordKey],
        times: Sequence[int | None],
        headers: Sequence[RecordHeaders] | None,
        values: bytes,
    ) -> None:
        self.keys = keys
        self.times = times
        self.headers = headers
        self.values = values
        # A bound, not an account: 14 bytes is the most that a time and what msgpack writes before a key take.
        self.size = len(values) + 14 * len(keys) + _bytes_of(keys)
        if headers is not None:
            # How a header shows itself is never shorter than what msgpack makes of it.
            self.size += sum(
                len(repr(one).encode(errors="surrogatepass")) for one in headers if one
            )


def _bytes_of(keys: Sequence[RecordKey]) -> int:
    """What keys take: text as UTF-8; of a whole number its decimal text, which is longer than what msgpack makes of it."""
    try:  # the usual case, in one pass: all are text
        return len("".join(keys).encode())  # type: ignore[arg-type]
    except TypeError:
        return sum(len(key_bytes(key)) for key in keys if key is not None)


class OpenBatch:
    """A batch of one partition, filled until it is sent."""

    __slots__ = (
        "_appendings",
        "_headers",
        "_keys",
        "_times",
        "_values",
        "deadline",
        "number",
        "origins",
        "ready_at",
        "size",
    )

    def __init__(self, ready_at: float, number: tuple[str, int] | None = None) -> None:
        self.number = number
        """Producer and sequence that whoever appends has given it; it is of that append alone."""
        self.ready_at = ready_at
        """When it need not wait for more."""
        self.deadline = 0.0
        """Until when it is tried: that of its last append."""
        self.size = 0
        self.origins = Origins()
        """Whose appends it is of."""
        self._keys: list[RecordKey] = []
        self._times: list[int | None] = []
        self._headers: list[RecordHeaders] | None = None
        self._values: list[bytes] = []
        self._appendings: list[Appending] = []

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, piece: Piece, appending: Appending, deadline: float) -> None:
        """Put a piece behind what is there."""
        if piece.headers is not None or self._headers is not None:
            if self._headers is None:
                self._headers = [None] * len(self._keys)
            self._headers += piece.headers or [None] * len(piece.keys)
        self._keys += piece.keys
        self._times += piece.times
        self._values.append(piece.values)
        self._appendings.append(appending)
        self.size += piece.size
        self.deadline = max(self.deadline, deadline)

    def watch(self, appending: Appending) -> None:
        """Have `appending` told of this batch's end, too."""
        self._appendings.append(appending)

    def body(self) -> bytes:
        """The body of its entry, not compressed."""
        return encode_columns(self._keys, self._times, self._headers, self._values)

    def settle(self, error: Exception | None) -> None:
        """Tell those who wait for it."""
        appendings, self._appendings = self._appendings, []
        for appending in appendings:
            appending.settle(error)
