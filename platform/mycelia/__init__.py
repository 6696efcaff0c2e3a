"""Mycelia: message-driven services and real-time pipelines on RabbitMQ.

General layout, lowest floor first; a module imports only from floors before its own (import-linter holds it):

    errors                       one tree of errors
    log_event redaction          a log line as a name and typed fields | what may be printed
    handover extras              from `nameko run` to here | the optional parts of the installation
    durations | nearest          "5m" as seconds | the name that was meant, for error messages
    broker | amqp | wire         RabbitMQ nodes | the broker link | Nameko's protocol; they do not know each other
    call                         Call, Outcome, deadline, middleware
    runtime                      host, container, workers, life cycle
    policies  entrypoints        middleware over calls | what makes workers run
    clients   logs  providers    proxies, dispatcher, client | partitioned logs | config, logger, …
    flow  nameko                 pipelines | all that exists for classes written for Nameko
    contracts  control           schemas, live configuration
    cli  testing                 the `mycelia` command | what users need to test their services
"""

from mycelia.handover import hand_over_importer

hand_over_importer()  # before all that would be imported in vain

# The programming model
# Errors
from mycelia import (
    errors,
    nameko,  # noqa: F401  it registers what runs classes written for Nameko
)

# Topology
from mycelia.amqp import Binding, Exchange, Queue

# Calls and middleware
from mycelia.call import (
    Ack,
    Call,
    CallKind,
    CallOptions,
    DeadLetter,
    Direction,
    Middleware,
    Next,
    Outcome,
    PublishOptions,
    Redeliver,
    Reply,
    Requeue,
    Target,
    context,
    get_current_call,
    redacted_arguments,
)
from mycelia.clients import BlockingClient, Client, EventDispatcher, Publisher, RpcProxy
from mycelia.entrypoints import (
    BROADCAST,
    SERVICE_POOL,
    SINGLETON,
    Batch,
    HttpCall,
    ServerSentEvent,
    ServerSentEvents,
    Subscription,
    Tick,
    TimerCall,
    consume,
    event_handler,
    http,
    mount,
    rpc,
    timer,
)
from mycelia.errors import RetryLater
from mycelia.logs import Log, Record, log_handler
from mycelia.policies.kill_switch import KillSwitch
from mycelia.policies.retry import Retry, exponential, fixed, linear
from mycelia.providers import (
    CallFields,
    Config,
    ConfigView,
    Inbox,
    Logger,
    MetricFactory,
    Metrics,
    Outbox,
    Tracer,
    configure_logging,
    links_of,
    trace_calls,
)
from mycelia.runtime import (
    AdaptivePrefetch,
    Container,
    DependencyProvider,
    Entrypoint,
    Extension,
    Runner,
    SharedDependency,
    SharedExtension,
    WorkerContext,
)
from mycelia.wire import register_remote_error

__all__ = [
    "BROADCAST",
    "SERVICE_POOL",
    "SINGLETON",
    "Ack",
    "AdaptivePrefetch",
    "Batch",
    "Binding",
    "BlockingClient",
    "Call",
    "CallFields",
    "CallKind",
    "CallOptions",
    "Client",
    "Config",
    "ConfigView",
    "Container",
    "DeadLetter",
    "DependencyProvider",
    "Direction",
    "Entrypoint",
    "EventDispatcher",
    "Exchange",
    "Extension",
    "HttpCall",
    "Inbox",
    "KillSwitch",
    "Log",
    "Logger",
    "MetricFactory",
    "Metrics",
    "Middleware",
    "Next",
    "Outbox",
    "Outcome",
    "PublishOptions",
    "Publisher",
    "Queue",
    "Record",
    "Redeliver",
    "Reply",
    "Requeue",
    "Retry",
    "RetryLater",
    "RpcProxy",
    "Runner",
    "ServerSentEvent",
    "ServerSentEvents",
    "SharedDependency",
    "SharedExtension",
    "Subscription",
    "Target",
    "Tick",
    "TimerCall",
    "Tracer",
    "WorkerContext",
    "configure_logging",
    "consume",
    "context",
    "errors",
    "event_handler",
    "exponential",
    "fixed",
    "get_current_call",
    "http",
    "linear",
    "links_of",
    "log_handler",
    "mount",
    "redacted_arguments",
    "register_remote_error",
    "rpc",
    "timer",
    "trace_calls",
]

__version__ = "0.1.0"
