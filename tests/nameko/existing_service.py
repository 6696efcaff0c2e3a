"""A service as teams have them: nothing here knows of Mycelia. Every kind of extension that Nameko has."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import Any, ClassVar

from eventlet.event import Event
from kombu import Exchange, Queue
from nameko.contextdata import AuthToken, Language
from nameko.dependency_providers import Config
from nameko.events import BROADCAST, SINGLETON, EventDispatcher, EventHandler, event_handler
from nameko.exceptions import BadRequest, RemoteError, UnknownService
from nameko.extensions import DependencyProvider, Entrypoint, SharedExtension
from nameko.messaging import Publisher, consume
from nameko.rpc import Rpc, RpcProxy, rpc
from nameko.timer import timer
from nameko.utils import get_redacted_args
from nameko.web.handlers import HttpRequestHandler, http
from nameko.web.websocket import WebSocketHubProvider
from nameko.web.websocket import rpc as websocket_rpc
from nameko_sqlalchemy import Database, DatabaseSession
from sqlalchemy import Column, Integer, String
from sqlalchemy.orm import declarative_base
from werkzeug.wrappers import Request, Response

Base = declarative_base()

work_exchange = Exchange("work", type="direct", durable=True)
work_queue = Queue("work-items", exchange=work_exchange, routing_key="item", durable=True)


class Plane(Base):
    __tablename__ = "planes"
    tail = Column(String, primary_key=True)
    seats = Column(Integer)


# --- third-party extensions ------------------------------------------------------------------------


class Registry(SharedExtension):
    """Shared by the provider and the entrypoint below."""

    def setup(self) -> None:
        self.setups = getattr(self, "setups", 0) + 1
        self.log: list[str] = []


class Recorder(DependencyProvider):
    """Records each worker's life; what it injects is a view of it."""

    registry = Registry()

    def __init__(self, label: str) -> None:
        self.label = label

    def setup(self) -> None:
        self.is_setup = True

    def get_dependency(self, worker_ctx: Any) -> Any:
        entrypoint = worker_ctx.entrypoint
        self.registry.log.append(f"get {entrypoint.method_name}")
        # As tracers and metrics do: by class, and with Nameko's own helpers.
        if isinstance(entrypoint, Rpc):
            args = get_redacted_args(entrypoint, *worker_ctx.args, **worker_ctx.kwargs)
            self.registry.log.append(f"rpc {sorted(args)}")
        return self.registry

    def worker_setup(self, worker_ctx: Any) -> None:
        worker_ctx.data["recorded_by"] = self.label
        self.registry.log.append(f"setup {worker_ctx.service.name}")

    def worker_result(self, worker_ctx: Any, result: Any = None, exc_info: Any = None) -> None:
        self.registry.log.append("failed" if exc_info else "succeeded")

    def worker_teardown(self, worker_ctx: Any) -> None:
        self.registry.log.append("teardown")


class Shouting(RpcProxy):
    """A subclass of a stock provider, as libraries write them."""

    def get_dependency(self, worker_ctx: Any) -> Any:
        proxy = super().get_dependency(worker_ctx)
        return lambda text: proxy.echo(text.upper())


class Feed(Entrypoint):
    """Runs a loop in a managed thread and waits for each worker, as Nameko's own timer does."""

    registry = Registry()

    def __init__(self, items: list[Any], **kwargs: Any) -> None:
        self.items = items
        super().__init__(**kwargs)

    def start(self) -> None:
        self.gt = self.container.spawn_managed_thread(self.run, identifier="feed")

    def run(self) -> None:
        for item in self.items:
            done = Event()
            self.container.spawn_worker(
                self,
                (item,),
                {},
                context_data={"language": "is"},
                handle_result=partial(self.handle_result, done),
            )
            try:
                self.registry.log.append(f"feed got {done.wait()}")
            except ValueError as exc:
                self.registry.log.append(f"feed got error {exc}")

    def handle_result(self, done: Event, worker_ctx: Any, result: Any, exc_info: Any) -> Any:
        done.send(result, exc_info)
        return result, exc_info

    def stop(self) -> None:
        self.gt.wait()


class CorsHandler(HttpRequestHandler):
    """As in Nameko's documentation: custom HTTP handlers."""

    def handle_request(self, request: Request) -> Response:
        self.request = request
        return super().handle_request(request)

    def response_from_result(self, *args: Any, **kwargs: Any) -> Response:
        response = super().response_from_result(*args, **kwargs)
        response.headers.add("Access-Control-Allow-Origin", "*")
        return response

    def response_from_exception(self, exc: Exception) -> Response:
        if isinstance(exc, LookupError):
            body = json.dumps({"error": "NOT_FOUND"})
            return Response(body, status=404, mimetype="application/json")
        return super().response_from_exception(exc)


class HostBroadcast(EventHandler):
    """BROADCAST with an identifier of its own, so that it may be reliable."""

    broadcast_identifier = "host-1"


cors_http = CorsHandler.decorator
feed = Feed.decorator
host_event_handler = HostBroadcast.decorator


# --- the service -----------------------------------------------------------------------------------


class Existing:
    name = "existing"

    config = Config()
    token = AuthToken()
    language = Language()
    myself = RpcProxy("existing")
    nobody = RpcProxy("nobody")
    shout = Shouting("existing")
    dispatch = EventDispatcher()
    publish = Publisher(exchange=work_exchange)
    recorder = Recorder("a recorder")
    hub = WebSocketHubProvider()
    db = Database(Base)
    session = DatabaseSession(Base)

    seen: ClassVar[list[Any]] = []
    ticks: ClassVar[int] = 0

    # rpc

    @rpc
    def echo(self, value: Any) -> Any:
        return value

    @rpc
    async def echo_async(self, value: Any) -> Any:
        return value

    @rpc(expected_exceptions=ValueError)
    def fail(self, text: str) -> None:
        raise ValueError(text)

    @rpc
    def call_myself(self, text: str) -> list[Any]:
        reply = self.myself.echo.call_async(text)
        return [self.myself.echo(text), reply.result(), self.shout(text)]

    @rpc
    async def await_myself(self, text: str) -> Any:
        return await self.myself.echo(text)

    @rpc
    def catch_remote_error(self) -> str:
        try:
            self.myself.fail("caught by Nameko's name")
        except RemoteError as exc:
            return f"{exc.exc_type}: {exc.value}"
        return "nothing was raised"

    @rpc
    def catch_unknown_service(self) -> str:
        try:
            self.nobody.nothing()
        except UnknownService as exc:
            return str(exc)
        return "nothing was raised"

    @rpc
    def surroundings(self) -> dict[str, Any]:
        return {
            "token": self.token,
            "language": self.language,
            "from_config": self.config["FROM_CONFIG"],
            "thread": threading.current_thread() is not threading.main_thread(),
        }

    # events and messages

    @rpc
    def announce(self, event_type: str, payload: Any) -> None:
        self.dispatch(event_type, payload)

    @event_handler("existing", "pooled")
    def on_pooled(self, payload: Any) -> None:
        self.seen.append(["pooled", payload])

    @event_handler("existing", "single", handler_type=SINGLETON)
    async def on_single(self, payload: Any) -> None:
        self.seen.append(["single", payload])

    @event_handler("existing", "cast", handler_type=BROADCAST, reliable_delivery=False)
    def on_cast(self, payload: Any) -> None:
        self.seen.append(["cast", payload])

    @host_event_handler("existing", "host_cast", handler_type=BROADCAST)
    def on_host_cast(self, payload: Any) -> None:
        self.seen.append(["host_cast", payload])

    @rpc
    def put_to_work(self, item: Any) -> None:
        self.publish(item, routing_key="item")

    @consume(work_queue)
    def work(self, item: Any) -> None:
        self.seen.append(["work", item])

    @timer(interval=0.1)
    def tick(self) -> None:
        type(self).ticks += 1

    @rpc
    def what_happened(self) -> dict[str, Any]:
        return {"seen": self.seen, "ticks": self.ticks}

    # third-party extensions

    @feed([1, 2, "bad"])
    def take(self, item: Any) -> str:
        if item == "bad":
            raise ValueError("a bad item")
        return f"{item} in {self.language}"

    @rpc
    def recorded(self) -> dict[str, Any]:
        return {"log": list(self.recorder.log), "setups": self.recorder.setups}

    # a database

    @rpc
    def migrate(self) -> None:
        Base.metadata.create_all(self.session.get_bind())

    @rpc
    def add_plane(self, tail: str, seats: int) -> None:
        with self.db.get_session() as session:
            session.add(Plane(tail=tail, seats=seats))

    @rpc
    def add_plane_badly(self, tail: str) -> None:
        with self.db.get_session() as session:
            session.add(Plane(tail=tail, seats=0))
            raise ValueError("rolled back")

    @rpc
    def planes(self) -> Any:
        return sorted([plane.tail, plane.seats] for plane in self.session.query(Plane))

    # http

    @http("GET", "/planes/<string:tail>/rows/<int:row>")
    def row(self, request: Request, tail: str, row: int) -> str:
        return json.dumps([tail, row, request.args.get("class")])

    @http("POST,PUT", "/planes")
    async def post_plane(self, request: Request) -> tuple[int, dict[str, str], str]:
        return 201, {"Location": "/planes/N1"}, request.get_data(as_text=True)

    @http("GET", "/response")
    def response(self, request: Request) -> Response:
        return Response(b"\x00\x01", status=202, mimetype="application/octet-stream")

    @http("GET", "/slow")
    def slow(self, request: Request) -> str:
        self.seen.append(["slow", None])
        threading.Event().wait(1.0)
        return "x" * 1_000_000

    @http("GET", "/expected", expected_exceptions=ValueError)
    def expected(self, request: Request) -> None:
        raise ValueError("your fault")

    @http("GET", "/bad-request")
    def bad_request(self, request: Request) -> None:
        raise BadRequest("not like this")

    @http("GET", "/unexpected")
    def unexpected(self, request: Request) -> None:
        raise TypeError("our fault")

    @http("GET", "/not-text")
    def not_text(self, request: Request) -> Any:
        return {"a": "dict"}

    @cors_http("GET", "/cors/<key>")
    def cors(self, request: Request, key: str) -> str:
        return {"known": "value"}[key]

    # websocket

    @websocket_rpc
    def subscribe(self, socket_id: str, channel: str) -> Any:
        self.hub.subscribe(socket_id, channel)
        return self.hub.get_subscriptions(socket_id)

    @websocket_rpc
    def unsubscribe(self, socket_id: str, channel: str) -> Any:
        self.hub.unsubscribe(socket_id, channel)
        return self.hub.get_subscriptions(socket_id)

    @websocket_rpc
    def whisper(self, socket_id: str, text: str) -> bool:
        return bool(self.hub.unicast(socket_id, "whispered", {"text": text}))

    @websocket_rpc
    def fail_on_socket(self, socket_id: str) -> None:
        raise ValueError("on the socket")

    @rpc
    def broadcast(self, channel: str, text: str) -> None:
        self.hub.broadcast(channel, "said", {"text": text})

    @rpc
    def unicast_to_nobody(self) -> Any:
        return self.hub.unicast("no such socket", "x", None)
