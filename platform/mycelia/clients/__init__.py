"""The calling and publishing side: proxies for services, a client for everything else."""

from mycelia.clients.client import BlockingClient, Client
from mycelia.clients.events import EventDispatcher
from mycelia.clients.publisher import Publisher
from mycelia.clients.publishing import PublishOptions
from mycelia.clients.reply_router import ReplyRouter
from mycelia.clients.rpc_proxy import RpcProxy, RpcReply, ServiceProxy

__all__ = [
    "BlockingClient",
    "Client",
    "EventDispatcher",
    "PublishOptions",
    "Publisher",
    "ReplyRouter",
    "RpcProxy",
    "RpcReply",
    "ServiceProxy",
]
