"""A service that catches what goes wrong by Nameko's and kombu's names; runs on stock Nameko and here."""

from __future__ import annotations

import os
from typing import Any

from kombu import Exchange
from kombu.exceptions import EncodeError, OperationalError, SerializerNotInstalled
from nameko.events import EventDispatcher
from nameko.exceptions import ConfigurationError
from nameko.messaging import Publisher
from nameko.rpc import RpcProxy
from nameko.web.handlers import http

ONCE = {"max_retries": 1, "interval_start": 0, "interval_step": 0}


def caught_by(act: Any, *args: Any) -> str:
    """The name in an `except` that catches what `act(*args)` raises."""
    try:
        act(*args)
    except SerializerNotInstalled:
        return "SerializerNotInstalled"
    except ConfigurationError:
        return "ConfigurationError"
    except OperationalError:
        return "OperationalError"
    except EncodeError:
        return "EncodeError"
    except Exception as exc:  # noqa: BLE001  the test shows it
        return f"only Exception: {exc!r}"
    return "nothing"


class Named:
    name = f"named_{os.environ.get('SIDE')}"
    dispatch = EventDispatcher()
    publish = Publisher(exchange=Exchange("named", durable=False), retry_policy=ONCE)
    proxy = RpcProxy("nobody_at_all")

    @http("GET", "/unwritable-event")
    def unwritable_event(self, request: Any) -> str:
        return caught_by(self.dispatch, "happened", object())

    @http("GET", "/unwritable-message")
    def unwritable_message(self, request: Any) -> str:
        return caught_by(self.publish, {"at": object()})

    @http("GET", "/unwritable-argument")
    def unwritable_argument(self, request: Any) -> str:
        return caught_by(self.proxy.method, object())

    @http("GET", "/message")
    def message(self, request: Any) -> str:
        return caught_by(self.publish, "x")

    @http("GET", "/unknown-serializer")
    def unknown_serializer(self, request: Any) -> str:
        return caught_by(lambda: self.publish("x", serializer="nope"))
