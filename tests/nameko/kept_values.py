"""Values, options and decorators of `kept_services.py` and `kept_native.py`; nothing of Nameko is imported."""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

RICH: dict[str, Any] = {
    "datetime": datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=UTC),
    "date": date(2024, 5, 6),
    "time": time(7, 8, 9),
    "Decimal": Decimal("1.50"),
    "UUID": UUID("0af76519-16cd-43dd-8448-eb211c80319c"),
    "bytes": b"\x00\xff",
}

PUBLISH_OPTIONS: dict[str, dict[str, Any]] = {
    "gzip": {"compression": "gzip"},
    "bzip2": {"compression": "bzip2"},
    "lzma": {"compression": "application/x-lzma"},
    "user_id": {"user_id": "guest"},
    "cluster_id": {"cluster_id": "c"},
    "timestamp": {"timestamp": 1714979289},
    "content_type": {"content_type": "text/plain"},
    "content_encoding": {"content_type": "text/plain", "content_encoding": "latin-1"},
    "ignored_encoding": {"content_encoding": "latin-1"},
    "transient": {"delivery_mode": "transient"},
    "persistent": {"delivery_mode": "persistent"},
    "mode_1": {"delivery_mode": 1},
    "retry": {"retry": True, "retry_policy": {"max_retries": 1}},
    "no_retry": {"retry": False, "confirm_timeout": 5, "timeout": 5},
    "names": {
        "type": "t",
        "app_id": "a",
        "message_id": "m",
        "correlation_id": "c",
        "reply_to": "r",
    },
    "expiration": {"expiration": 60, "priority": 3, "mandatory": True},
    "unconfirmed": {"use_confirms": False, "immediate": False},
    "headers": {"headers": {"a": 1, "b": 2}},
    "serializer": {"serializer": "yaml"},
}


def with_user(method: Any) -> Any:
    """Supplies an argument."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, "Ada", *args, **kwargs)

    return call


def of(value: Any) -> list[str]:
    return [type(value).__name__, str(value)]
