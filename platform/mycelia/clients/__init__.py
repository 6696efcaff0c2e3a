"""The calling and publishing side: proxies for services, a client for everything else."""

from mycelia.clients.client import BlockingClient, Client
from mycelia.clients.events import BlockingDispatch, Dispatch, EventDispatcher
from mycelia.clients.publisher import BlockingPublish, Publish, Publisher
from mycelia.clients.reply_router import ReplyRouter
from mycelia.clients.rpc_proxy import (
    BlockingMethodProxy,
    BlockingRpcReply,
    BlockingServiceProxy,
    MethodProxy,
    RpcProxy,
    RpcReply,
    ServiceProxy,
)

__all__ = [
    "BlockingClient",
    "BlockingDispatch",
    "BlockingMethodProxy",
    "BlockingPublish",
    "BlockingRpcReply",
    "BlockingServiceProxy",
    "Client",
    "Dispatch",
    "EventDispatcher",
    "MethodProxy",
    "Publish",
    "Publisher",
    "ReplyRouter",
    "RpcProxy",
    "RpcReply",
    "ServiceProxy",
]
