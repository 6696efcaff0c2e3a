"""The public names of `mycelia`, by the page of the API reference that has them. One that appears here is a promise.

One that goes needs a word in `changes/`. `tests/test_exports.py` holds the package to it.
"""

REFERENCE: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "services": (
        "Services",
        "What starts the methods of a service, and what they are given.",
        (
            *("rpc", "event_handler", "consume", "timer", "http", "mount", "log_handler"),
            *(
                "RpcProxy",
                "EventDispatcher",
                "Publisher",
                "Log",
                "Record",
                "Config",
                "ConfigView",
                "Logger",
                "Tracer",
                "trace_calls",
                "links_of",
                "Metrics",
                "MetricFactory",
                "Outbox",
                "Inbox",
            ),
            *(
                "AdaptivePrefetch",
                "Batch",
                "ServerSentEvents",
                "ServerSentEvent",
                "Queue",
                "Exchange",
                "Binding",
            ),
        ),
    ),
    "callers": (
        "Callers and runners",
        "For programs that are no services, and for programs that run them.",
        ("Client", "BlockingClient", "Runner", "Container", "configure_logging", "CallFields"),
    ),
    "calls": (
        "Calls and middleware",
        "What is asked, what came of it, and what stands around it.",
        (
            *(
                "Call",
                "HttpCall",
                "TimerCall",
                "Tick",
                "get_current_call",
                "Target",
                "Direction",
                "CallKind",
            ),
            *("context", "redacted_arguments"),
            *("Outcome", "Ack", "Reply", "Requeue", "Redeliver", "DeadLetter"),
            *("Middleware", "Next", "CallOptions", "PublishOptions"),
        ),
    ),
    "policies": (
        "Policies",
        "What is decided about calls, as records: when something that failed is tried again.",
        ("KillSwitch", "Retry", "exponential", "fixed", "linear"),
    ),
    "extensions": (
        "Extensions of your own",
        "What dependency providers and entrypoints derive from.",
        (
            *("DependencyProvider", "SharedDependency", "WorkerContext"),
            *("Entrypoint", "Subscription", "SharedExtension", "Extension"),
        ),
    ),
}
ELSEWHERE = {"errors": "errors", "register_remote_error": "errors", "RetryLater": "errors"}
ELSEWHERE |= dict.fromkeys(("BROADCAST", "SERVICE_POOL", "SINGLETON"), "services")
"""Public names that a page has without listing them."""

PUBLIC_NAMES = {name for _, _, names in REFERENCE.values() for name in names} | set(ELSEWHERE)
