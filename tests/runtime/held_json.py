"""A serializer whose decoder waits for the event loop, and so would wait for ever if it ran on it."""

from __future__ import annotations

import json
import threading
from typing import Any

entered = threading.Event()
"""A body is being decoded."""
go_on = threading.Event()


def encode(value: Any) -> str:
    return json.dumps(value)


def decode(body: str) -> Any:
    entered.set()
    assert go_on.wait(20), "the event loop does not run while a body is decoded"
    return json.loads(body)
