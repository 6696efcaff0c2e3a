"""A service whose requests two kinds of `@rpc` would take from each other; stock Nameko never sees this module."""

from __future__ import annotations

from typing import Any

from nameko.rpc import Rpc

import mycelia


class CountedRpc(Rpc):
    def handle_result(self, *args: Any) -> Any:
        return super().handle_result(*args)


class TwoKindsOfRpc:
    name = "two_kinds"

    @CountedRpc.decorator
    def counted(self) -> None: ...

    @mycelia.rpc
    def plain(self) -> None: ...
