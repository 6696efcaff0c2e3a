"""Nameko's standalone clients in a plain script: reads `[operation, args, kwargs]` a line, answers a line of JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from nameko.constants import AUTH_TOKEN_CONTEXT_KEY
from nameko.exceptions import deserialize_to_instance
from nameko.standalone.events import event_dispatcher
from nameko.standalone.rpc import ClusterRpcProxy, ServiceRpcProxy
from tests.nameko.shared_errors import PlaneNotFound

deserialize_to_instance(PlaneNotFound)


def answer(value: Any) -> None:
    sys.stdout.write(json.dumps(value, default=repr) + "\n")
    sys.stdout.flush()


def described(exc: Exception) -> dict[str, Any]:
    attributes = {name: str(value) for name, value in vars(exc).items()}
    return {"type": type(exc).__name__, "text": str(exc), **attributes}


def main() -> None:
    config = json.loads(sys.argv[1])
    dispatch = event_dispatcher(config)
    context = {AUTH_TOKEN_CONTEXT_KEY: "token of the stock client"}
    with ClusterRpcProxy(config, context_data=context, timeout=10) as cluster:
        for line in sys.stdin:
            operation, args, kwargs = json.loads(line)
            try:
                if operation == "call":
                    service, method, *rest = args
                    answer(getattr(getattr(cluster, service), method)(*rest, **kwargs))
                elif operation == "call_many":
                    service, method, items = args
                    replies = [getattr(cluster[service], method).call_async(item) for item in items]
                    answer([reply.result() for reply in replies])
                elif operation == "call_one_service":
                    service, method, *rest = args
                    with ServiceRpcProxy(service, config, timeout=10) as proxy:
                        answer(getattr(proxy, method)(*rest, **kwargs))
                elif operation == "dispatch":
                    answer(dispatch(*args))
            except Exception as exc:  # noqa: BLE001  the caller is told of it
                answer(described(exc))


if __name__ == "__main__":
    main()
