"""What the runtime reads from configuration: Nameko's keys under Nameko's names, ours in a section `mycelia:`.

Every key is checked once, at start. A wrong type or an unknown key of ours is a `ConfigError` that names the key, what
was expected, and what was found. Keys that are neither belong to the user's services and are left alone.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from mycelia.call import DEFAULT_TIMEOUT
from mycelia.errors import ConfigError
from mycelia.nearest import nearest
from mycelia.redaction import redact, shown_value

__all__ = [
    "BUCKETS",
    "DEFAULT_BROKER",
    "OF_HTTP",
    "OF_THE_BROKER",
    "USED_BY_SOME",
    "AccessLogSection",
    "FlowsSection",
    "HealthSection",
    "MetricsSection",
    "MyceliaSection",
    "Settings",
    "half_a_character",
    "misspelt_keys",
]

DEFAULT_BROKER = "pyamqp://guest:guest@localhost"
"""Where the broker is when nobody says (nameko/cli/commands.py; `pyamqp` is kombu's name for `amqp`)."""

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


CHANGEABLE = frozenset(
    {
        "max_workers",
        "mycelia.async_concurrency",
        "mycelia.error_tracebacks",
        "mycelia.grace",
        "mycelia.handler_timeout",
        "mycelia.log_level",
        "mycelia.max_body_bytes",
        "mycelia.prefetch_bytes",
        "mycelia.publish_timeout",
        "mycelia.handler_retry",
        "mycelia.requeue_attempts",
        "mycelia.retry",
        "mycelia.rpc_max_runs",
        "mycelia.rpc_prefetch_max",
        "mycelia.rpc_timeout",
        "mycelia.shed_overload",
        "mycelia.slow_after",
    }
)
"""What can change while services run; whoever copies one of these is told (`Host.on_change`, `Extension.reconfigure`)."""


BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of histograms, in seconds: from what an RPC takes to what nobody waits for any more."""


class HealthSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The section `mycelia: health:`: where `/live` and `/ready` are answered. They are at the port of `metrics:` too."""

    port: int
    """0 takes a free one."""
    host: str = "0.0.0.0"
    """The address to listen at; all by default, because whoever asks (Kubernetes) is another machine."""

    def __post_init__(self) -> None:
        _check_port(self.port)


class MetricsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The section `mycelia: metrics:`. There, even if empty, it turns the metrics on."""

    port: int | None = None
    """Where `/metrics`, `/live` and `/ready` are answered; 0 takes a free one, `None` listens nowhere."""
    host: str = "0.0.0.0"
    """The address to listen at."""
    buckets: tuple[float, ...] = BUCKETS
    """Upper bounds, in seconds, that durations and waiting times are counted under."""
    queue_depth_every: float = 10.0
    """Seconds between two looks at how many messages wait in the queues that are consumed; 0 for never."""
    answers_top: bool = True
    """Whether this process answers `mycelia top`, by a queue of its own at the broker."""

    def __post_init__(self) -> None:
        if self.port is not None:
            _check_port(self.port)
        if (
            not self.buckets
            or list(self.buckets) != sorted(set(self.buckets))
            or len(self.buckets) > 50
        ):
            raise ValueError(
                "buckets must be from 1 to 50 numbers, each greater than the one before"
            )
        if self.buckets[0] <= 0 or not math.isfinite(self.buckets[-1]):
            raise ValueError("buckets must be seconds greater than 0")
        if self.queue_depth_every < 0:
            raise ValueError("queue_depth_every must be 0 or more")


class TracingSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The section `mycelia: tracing:`, where `true` is not enough."""

    exporter: str | None = None
    """"otlp", "console" or "none"; `OTEL_TRACES_EXPORTER` says by default, and without it "otlp"."""
    endpoint: str | None = None
    """Where "otlp" sends to, `http://collector:4318` for instance; `OTEL_EXPORTER_OTLP_ENDPOINT` by default."""
    sample: float | None = None
    """The share of the traces beginning here that are kept, from 0 to 1; `OTEL_TRACES_SAMPLER` says by default, and without it all."""

    def __post_init__(self) -> None:
        if self.sample is not None and not 0 <= self.sample <= 1:
            raise ValueError("sample must be from 0 to 1")
        if self.exporter not in (None, "otlp", "console", "none"):
            raise ValueError('exporter must be "otlp", "console" or "none"')


def _check_port(port: int) -> None:
    if not 0 <= port <= 65535:
        raise ValueError("port must be from 0 to 65535")


class AccessLogSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The section `mycelia: access_log:`, where `true` is not enough."""

    sample: float = 1.0
    """The share of the successful calls that have a line, from 0 to 1; those that fail or are refused have one always."""
    slower_than: float | None = None
    """Seconds from which on a successful call has a line whatever the share is."""
    arguments: bool = False
    """Whether the line has the arguments, cut, and without those that are sensitive."""

    def __post_init__(self) -> None:
        if not 0 <= self.sample <= 1:
            raise ValueError("sample must be between 0 and 1")
        if self.slower_than is not None and self.slower_than < 0:
            raise ValueError("slower_than must be 0 or more")


class FlowsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The section `mycelia: flows:`: what `@flow` keeps, and where."""

    state: str = ".mycelia/flows"
    """The directory of state files, from the working directory: of this machine, and the same for all instances on it. Or, for instances on
    several machines, `postgresql://user:password@host:port/database`, which needs the extra `postgresql`."""
    changelog: bool = False
    """Whether each commit goes to a stream of the broker first, so that an instance on another machine, with a directory of its own, can go on."""
    changelog_bytes: int = 4 * 1024**3
    """What the stream of one partition keeps: more than six times as much as the partition's state."""
    ahead_bytes: int = 64 * 1024**2
    """What a partition of a stage may have written to the logs between stages that those behind it have not committed. Then it takes no more."""

    def __post_init__(self) -> None:
        if not self.state:
            raise ValueError("state must be the path of a directory, or a postgresql:// URL")
        if self.changelog and self.state.startswith(("postgresql://", "postgres://")):
            raise ValueError(
                "changelog is for state in files; a PostgreSQL is there for all machines already"
            )
        if self.changelog_bytes < 1:
            raise ValueError("changelog_bytes must be a number of bytes, from 1")
        if self.ahead_bytes < 1:
            raise ValueError("ahead_bytes must be a number of bytes, from 1")


class MyceliaSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The section `mycelia:` of the configuration. Times are in seconds."""

    rpc_timeout: float = DEFAULT_TIMEOUT
    """How long an RPC may take where the proxy or the call says nothing."""
    requests_expire: bool = True
    """Whether the broker drops a request that nobody has taken by its deadline, by the property `expiration`. `False` for
    callers of stock services that publish a request again with an expiration of their own (nameko-amqp-retry)."""
    rpc_max_runs: int = 2
    """How often a request may be begun whose process dies over it, where the method is not `idempotent`; then it is answered
    with an error. 2, so that one crash for another reason costs nothing, and one deadly request not the whole fleet."""
    error_tracebacks: bool = True
    """Whether error replies tell Mycelia callers the traceback, with paths and source lines."""
    publish_timeout: float = 30.0
    """How long a confirmed publishing may wait for the broker."""
    connect_timeout: float = 5.0
    """How long one broker may take to connect, TLS and handshake included, before the next is tried."""
    peer_timeout: float = 4.0
    """How long the broker's machine may leave a sign of life unanswered; 0 for ever. Linux only."""
    grace: float = 25.0
    """How long running workers may go on after SIGTERM. Below the 30 s after which orchestrators kill."""
    async_concurrency: int = 100
    """Workers at once for each `async def` entrypoint, where neither it nor `max_workers` says."""
    event_queue_type: str = "quorum"
    """Type of the queues that Mycelia's event handlers declare; "classic" declares exactly Nameko's."""
    rpc_queue_type: str = "classic"
    """Type of the queues that `@rpc` methods share; "classic" declares exactly Nameko's, "quorum" outlives a node."""
    max_body_bytes: int = 128 * 1024 * 1024
    """Largest body that is decoded; RabbitMQ 3.x takes up to 128 MiB by default."""
    retry: dict[str, Any] | list[Any] | bool | None = None
    """When event handlers and `@consume` try a message again that failed, where their declaration does not say: a mapping, a
    list of pauses, or `false` for never (`mycelia.policies.retry.retry_of`)."""
    handler_retry: dict[str, Any] | None = None
    """The same for single handlers, by `service.method` (over what their declaration says) or by `service`."""
    requeue_attempts: int = 20
    """Attempts after which a message is dead-lettered that has `requeue_on_error`, or whose handler or middleware asks for
    another attempt without a policy; RabbitMQ 4's delivery limit."""
    kill_switch: bool | dict[str, Any] | None = None
    """When event handlers and `@consume` stop taking messages because they fail too often, where they say nothing: `true` for the
    defaults, or `failure_rate`, `minimum`, `window`, `pause`, `probes` as in `KillSwitch`; by default never."""
    handler_timeout: float | None = None
    """How long a worker may take where its entrypoint says nothing; an RPC may take until its deadline in any case."""
    slow_after: float = 30.0
    """After how long a worker that still runs is said to be slow, once; 0 for never."""
    prefetch_bytes: int = 64 * 1024 * 1024
    """How many bytes of bodies the messages of one event handler or `@consume` may have here: of larger ones its prefetch is lowered.
    64 MiB is arbitrary: a process has several. 0 for any."""
    rpc_prefetch_max: int = 5000
    """How far the window of requests may grow while one slow method fills it and another has nothing to do."""
    shed_overload: bool = True
    """Whether an RPC that has waited is refused when it has less time left than its method usually takes."""
    middleware: tuple[str | dict[str, Any], ...] = ()
    """Dotted paths of middleware around every call of every service, outermost first; a class with settings as `{path: settings}`."""
    log_level: str = "INFO"
    """The least level that is logged, where `LOGGING` does not say."""
    log_format: str = "auto"
    """What log lines look like: "console", "json", or "auto", the console's on a terminal and JSON anywhere else."""
    access_log: bool | AccessLogSection | None = None
    """Whether each call that arrives has a line in the log (`call_ended`), or which of them."""
    http_max_body_bytes: int = 16 * 1024 * 1024
    """Largest request body that `@http` methods read. Arbitrary; it keeps one client from filling the memory."""
    http_access_log: bool | None = None
    """Whether each HTTP request is logged: as `access_log` says by default, and without it those of existing services are, as
    Nameko does it."""
    http_header_timeout: float = 10.0
    """How long the head of an HTTP request may take, from the connection or its first byte on. Arbitrary."""
    http_body_timeout: float = 30.0
    """How long the body of an HTTP request may pause. Arbitrary."""
    http_trusted_proxies: list[str] | None = None
    """Addresses and networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; nobody's otherwise."""
    processes: int = 1
    """Processes that run the services, where `--processes` does not say."""
    loop_blocked_after: float = 1.0
    """How long the event loop may be held up before it is said, with the stack that holds it; 0 for never."""
    tracing: bool | TracingSection | None = None
    """Spans for OpenTelemetry: `true`, `false`, or a section; `OTEL_…` variables that say where traces go turn it on by default."""
    metrics: MetricsSection | None = None
    """Metrics for Prometheus and `mycelia top`; off without this section."""
    health: HealthSection | None = None
    """Where probes ask whether the process lives and is ready; nowhere without this section."""
    database: str | None = None
    """SQLAlchemy's URL of the database that `Outbox()` and `Inbox()` work in, where their declaration does not say."""
    flows: FlowsSection | None = None
    """Where `@flow` keeps its state; in `.mycelia/flows` below the working directory without this section."""

    def __post_init__(self) -> None:
        for name in (
            "rpc_timeout",
            "publish_timeout",
            "connect_timeout",
            "http_header_timeout",
            "http_body_timeout",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0")
        for name in (
            "async_concurrency",
            "rpc_prefetch_max",
            "requeue_attempts",
            "rpc_max_runs",
            "max_body_bytes",
            "processes",
            "http_max_body_bytes",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.peer_timeout < 0:
            raise ValueError("peer_timeout must be 0 or more")
        if self.loop_blocked_after < 0:
            raise ValueError("loop_blocked_after must be 0 or more")
        for proxy in self.http_trusted_proxies or ():
            _check_proxy(proxy)
        if self.handler_timeout is not None and self.handler_timeout <= 0:
            raise ValueError("handler_timeout must be greater than 0")
        if self.prefetch_bytes < 0:
            raise ValueError("prefetch_bytes must be 0 or more")
        if self.slow_after < 0:
            raise ValueError("slow_after must be at least 0")
        for name in ("event_queue_type", "rpc_queue_type"):
            if getattr(self, name) not in ("quorum", "classic"):
                raise ValueError(f'{name} must be "quorum" or "classic"')
        if self.log_level not in LOG_LEVELS:
            raise ValueError(f"log_level must be one of {', '.join(LOG_LEVELS)}")
        if self.log_format not in ("auto", "console", "json"):
            raise ValueError('log_format must be "auto", "console" or "json"')


def _check_proxy(text: str) -> None:
    """Refuse what would never match; a name, because it might come to mean another address."""
    if text == "*":
        return
    try:
        ipaddress.ip_network(text)
    except ValueError as exc:
        raise ValueError(
            f"http_trusted_proxies: expected an address, a network such as 10.0.0.0/8, or *; {exc}"
        ) from None


OF_THE_BROKER = frozenset({"AMQP_URI", "AMQP_SSL", "HEARTBEAT", "rpc_exchange"})
OF_HTTP = frozenset({"WEB_SERVER_ADDRESS"})
READ_BY_NOBODY = frozenset(
    {
        *("LOGIN_METHOD", "TRANSPORT_OPTIONS", "SERVICE_CONTAINER_CLS"),
        *("AUTO_DELETE_EVENT_EXCHANGES", "DECLARE_EVENT_EXCHANGES"),
    }
)
"""Keys that have no meaning here, or are only asked whether they are true or false, as Nameko asks."""
USED_BY_SOME = OF_THE_BROKER | OF_HTTP
"""Keys that stop nothing where nobody uses them, whatever they hold; who does calls `Settings.demand()` first."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The checked configuration. Field names are the keys (Nameko's: reference in docs/configuration.md)."""

    AMQP_URI: str = DEFAULT_BROKER
    AMQP_SSL: bool | dict[str, Any] | None = None
    HEARTBEAT: float | None = 60
    LOGIN_METHOD: str | None = None
    TRANSPORT_OPTIONS: dict[str, Any] | None = None
    rpc_exchange: str = "nameko-rpc"
    serializer: str = "json"
    SERIALIZERS: dict[str, Any] | None = None
    ACCEPT: list[str] | None = None
    max_workers: int | None = None
    parent_calls_tracked: int = 10
    WEB_SERVER_ADDRESS: str = "0.0.0.0:8000"
    AUTO_DELETE_EVENT_EXCHANGES: bool | None = None
    DECLARE_EVENT_EXCHANGES: bool | None = None
    SERVICE_CONTAINER_CLS: str | None = None
    LOGGING: dict[str, Any] | None = None
    mycelia: MyceliaSection = msgspec.field(default_factory=MyceliaSection)

    def __post_init__(self) -> None:
        if self.max_workers is not None and self.max_workers < 1:
            raise ValueError("max_workers must be at least 1")

    def __repr__(self) -> str:
        return f"<Settings of {redact(self.AMQP_URI)}>"  # the others may hold secrets as well

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, unchecked: Collection[str] = ()) -> Settings:
        """Check `config` and take from it what the runtime needs.

        Args:
            unchecked: keys that are as if they were not there where their value is of a wrong type.

        Raises:
            ConfigError: naming the key, what was expected and what was found.
        """
        known = {name: config[name] for name in cls.__struct_fields__ if name in config}
        if type(port := known.get("WEB_SERVER_ADDRESS")) is int:  # YAML makes one of `8000`
            known["WEB_SERVER_ADDRESS"] = str(port)
        section = known.get("mycelia")
        if section is None:
            known.pop("mycelia", None)
        elif isinstance(section, Mapping):
            _check_section_keys(section)
        while True:
            try:
                return msgspec.convert(known, cls, strict=True)
            except msgspec.ValidationError as exc:
                wrong = _key_in(str(exc)).partition(".")[0]
                if wrong not in unchecked and wrong not in READ_BY_NOBODY:
                    raise ConfigError(_explain(str(exc), known)) from None
                del known[wrong]
            except UnicodeEncodeError:
                keys = ", ".join(key for key, value in known.items() if not _is_utf_8(value))
                raise half_a_character(keys) from None

    @classmethod
    def demand(cls, config: Mapping[str, Any], keys: Collection[str]) -> None:
        """Check `keys`, which are about to be used.

        Raises:
            ConfigError: as `from_config()`.
        """
        cls.from_config({key: config[key] for key in keys if key in config})

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """These settings with `changes` over them, given and checked as a configuration.

        Raises:
            ConfigError: a key is unknown, has a wrong type or value, or is not in `CHANGEABLE`.
        """
        unknown = [str(key) for key in changes if key not in self.__struct_fields__]
        if unknown:
            raise ConfigError(
                f"settings cannot change: {', '.join(unknown)} is none of the platform's own."
            )
        section = changes.get("mycelia", {})
        if not isinstance(section, Mapping):
            raise ConfigError(
                f'configuration key "mycelia": expected a section with keys, got {section!r}.'
            )
        new = Settings.from_config(
            {
                **msgspec.structs.asdict(self),
                **changes,
                "mycelia": {**msgspec.structs.asdict(self.mycelia), **section},
            }
        )
        fixed = [key for key in new.differing_from(self) if key not in CHANGEABLE]
        if fixed:
            raise ConfigError(
                f"{', '.join(fixed)} cannot change while services run: nothing was changed. Restart them with it. "
                f"These can: {', '.join(sorted(CHANGEABLE))}."
            )
        return new

    def differing_from(self, other: Settings) -> list[str]:
        """The keys that have another value here."""
        theirs = _flat(other)
        return [key for key, value in _flat(self).items() if value != theirs[key]]


def _flat(settings: Settings) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.structs.asdict(settings)
    section = values.pop("mycelia")
    return values | {f"mycelia.{name}": v for name, v in msgspec.structs.asdict(section).items()}


MISSPELT = 0.85
"""How like a known key, of 1, an unknown one is that is probably meant to be it. `AMQP_URL` for `AMQP_URI` is 0.88."""


def misspelt_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Keys at the top that nobody here knows, by what was probably meant: a known key that is not there itself.

    Others are the services' own.
    """
    missing = {key.casefold(): key for key in Settings.__struct_fields__ if key not in config}
    found = {}
    for key in config:
        if key not in Settings.__struct_fields__:  # YAML's keys may be numbers
            meant = nearest(str(key).casefold(), missing, MISSPELT)
            if meant is not None:
                found[key] = missing[meant]
    return found


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "metrics": MetricsSection,
    "health": HealthSection,
    "access_log": AccessLogSection,
    "tracing": TracingSection,
    "flows": FlowsSection,
}
"""Those inside `mycelia:`."""


def _check_section_keys(
    section: Mapping[str, Any], known: type[msgspec.Struct] = MyceliaSection, path: str = "mycelia"
) -> None:
    fields = known.__struct_fields__
    for key, value in section.items():
        if key not in fields:
            meant = nearest(str(key), fields)
            hint = f'Did you mean "{meant}"?' if meant else f"Known keys: {', '.join(fields)}."
            raise ConfigError(f'configuration key "{path}.{key}" is unknown. {hint}')
        if known is MyceliaSection and key in _SECTIONS and isinstance(value, Mapping):
            _check_section_keys(value, _SECTIONS[key], f"{path}.{key}")


def _key_in(text: str) -> str:
    """The key that a message of msgspec's is about; empty where it is about all."""
    return text.partition(" - at `$")[2].strip("`.")


def _explain(text: str, config: Mapping[str, Any]) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.max_workers`", as a sentence with the key and its value, if it may be shown."""
    problem = text.partition(" - at `$")[0]
    key = _key_in(text)
    if not key:
        return f"configuration: {problem}."
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return (
        f'configuration key "{key}": {problem[0].lower()}{problem[1:]} ({shown_value(key, value)}).'
    )


def half_a_character(key: str) -> ConfigError:
    """The error of a key whose text cannot be read because UTF-8 cannot carry it."""
    return ConfigError(f"{key} holds half a character (a lone surrogate). Write it anew, in UTF-8.")


def _is_utf_8(value: object) -> bool:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return False
    except TypeError:  # of a type that JSON has not: not what this looks for
        return True
    return True
