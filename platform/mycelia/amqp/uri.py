"""Where the broker is: `AMQP_URI` and `AMQP_SSL` as Nameko's configuration writes them. Pure but for reading certificates.

    amqp://user:password@host:port/vhost?heartbeat=10;amqp://second-host/vhost

`amqp` and `pyamqp` (kombu's name for it) are plain, `amqps` is TLS. Several brokers of one cluster are separated by
`;`; one that is only `host` or `host:port` takes the rest from the first. An empty path, `/`, `//` and `/%2F` all name the
virtual host "/", as in kombu.
"""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, unquote

from mycelia.errors import ConfigError
from mycelia.redaction import URI_PART, brokers_in, redact, scheme_of

__all__ = ["Endpoint", "parse_uri", "redact", "ssl_context", "unknown_scheme"]

_TLS_BY_SCHEME = {"amqp": False, "pyamqp": False, "amqps": True}
_SSL_KEYS = {
    "ca_certs",
    "cert_reqs",
    "certfile",
    "check_hostname",
    "ciphers",
    "keyfile",
    "keyfile_password",
    "server_hostname",
}
_CERT_REQS = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One broker, and who we are there. Its text never shows the password."""

    host: str = "localhost"
    port: int = 5672
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    vhost: str = "/"
    tls: bool = False
    heartbeat: float | None = None
    """Seconds, where the URI names them."""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_uri(uri: str) -> list[Endpoint]:
    """The brokers that `uri` names, in its order.

    Raises:
        ConfigError: no broker can be read from it. The message shows no password, and nothing that could be one.
    """
    endpoints: list[Endpoint] = []
    for part in brokers_in(uri):
        match = URI_PART.fullmatch(part)
        if match is not None:
            endpoints.append(_endpoint(match, uri))
        elif endpoints and "://" not in part:
            endpoints.append(_like_the_first(endpoints[0], part))
        else:
            raise ConfigError(_why_not(part))
    if not endpoints:
        raise ConfigError(f"AMQP_URI is empty. {_FORM}")
    return endpoints


_FORM = "Write amqp://user:password@host:port/vhost."
_ENCODE = (
    "If the password has one of # / ? [ ] ; : @ % in it, write that percent-encoded: "
    "%23 %2F %3F %5B %5D %3B %3A %40 %25."
)


def _why_not(part: str) -> str:
    """Why a broker cannot be read, without a word of it: what is taken for a host may be half of a password."""
    _, separator, rest = part.partition("://")
    behind = re.search("[/?#].*", rest, re.DOTALL)
    if not separator:
        why = "has no scheme"
    elif "#" in rest:
        why = 'has a "#" in it, which would end it'
    elif behind and "@" in behind[0]:
        why = 'has an "@" behind its first "/" or "?"'
    else:
        why = "has a host or a port that cannot be one"
    return f"AMQP_URI {why}. {_FORM} {_ENCODE}"


def _like_the_first(first: Endpoint, part: str) -> Endpoint:
    """A broker that is only `host` or `host:port`."""
    match = URI_PART.fullmatch(f"amqp://{part}")
    if match is None or match["user"] is not None:
        raise ConfigError(
            f"AMQP_URI names a second broker that is neither host:port nor a whole URI. {_FORM} {_ENCODE}"
        )
    port = _port(match["port"]) or first.port
    return replace(first, host=match["host"].lower() or "localhost", port=port)


def _endpoint(match: re.Match[str], uri: str) -> Endpoint:
    tls = _TLS_BY_SCHEME.get(match["scheme"].lower())
    if tls is None:
        raise ConfigError(unknown_scheme(uri))
    user, password = match["user"], match["password"]
    return Endpoint(
        host=match["host"].strip("[]").lower() or "localhost",
        port=_port(match["port"]) or (5671 if tls else 5672),
        user=unquote(user) if user else "guest",
        password=unquote(password[1:]) if password is not None else "guest",
        vhost=unquote((match["path"] or "")[1:]) or "/",
        tls=tls,
        heartbeat=_heartbeat(match["query"] or ""),
    )


def unknown_scheme(uri: str) -> str:
    """What to say of a URI with a scheme that no link speaks, or with none."""
    scheme = scheme_of(uri)
    if scheme is None:
        return f"AMQP_URI has no scheme that is known. {_FORM} {_ENCODE}"
    return f'AMQP_URI: no link speaks "{scheme}". Use amqp://, amqps://, pyamqp:// or memory://.'


def _port(text: str | None) -> int:
    """The port; 0 where none is named."""
    port = int(text) if text and len(text) <= 5 else 65_536 if text else 0
    if port > 65_535:
        raise ConfigError(f"AMQP_URI names a port above 65535. {_FORM}")
    return port


def _heartbeat(query: str) -> float | None:
    # Other options in a URI are kombu transport options; they have no meaning here and are passed over.
    text = dict(parse_qsl(query)).get("heartbeat")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(
            "AMQP_URI has a heartbeat that is no number; write seconds, 0 for none: ?heartbeat=10."
        )
    return seconds


def ssl_context(option: bool | Mapping[str, Any] | ssl.SSLContext | None) -> ssl.SSLContext | None:
    """The TLS context that `AMQP_SSL` describes; `None` where it is off.

    Args:
        option: `True` (verify against the system's authorities), or a dict with any of `ca_certs`, `certfile`,
            `keyfile`, `keyfile_password`, `cert_reqs` (`ssl.CERT_REQUIRED`, or "required", "optional", "none"),
            `check_hostname`, `server_hostname`, `ciphers`.

    Raises:
        ConfigError: an unknown key or value, or a file that cannot be loaded.
    """
    if not option:
        return None
    if isinstance(option, ssl.SSLContext):
        return option
    if option is not True and not isinstance(option, Mapping):
        raise ConfigError(
            "AMQP_SSL is neither true nor false nor a map. Write a map of ca_certs, certfile, …"
        )
    settings: dict[str, Any] = {} if option is True else dict(option)
    unknown = sorted(map(str, settings.keys() - _SSL_KEYS))
    if unknown:
        raise ConfigError(
            f"AMQP_SSL: unknown key {', '.join(unknown)}. Known are {', '.join(sorted(_SSL_KEYS))}."
        )
    try:
        context = ssl.create_default_context(cafile=settings.get("ca_certs"))
        if settings.get("certfile"):
            context.load_cert_chain(
                settings["certfile"], settings.get("keyfile"), settings.get("keyfile_password")
            )
        if settings.get("ciphers"):
            context.set_ciphers(settings["ciphers"])
    except (OSError, ValueError, TypeError) as exc:  # ssl.SSLError is an OSError
        raise ConfigError(f"AMQP_SSL: the certificates cannot be loaded: {exc}") from exc
    requirement = _cert_reqs(settings.get("cert_reqs"))
    context.check_hostname = (
        bool(settings.get("check_hostname", True)) and requirement is not ssl.CERT_NONE
    )
    context.verify_mode = requirement
    return context


def _cert_reqs(value: object) -> ssl.VerifyMode:
    if value is None:
        return ssl.CERT_REQUIRED
    if isinstance(value, str):
        known = _CERT_REQS.get(value.lower().removeprefix("ssl.").removeprefix("cert_"))
        if known is not None:
            return known
    elif isinstance(value, int):
        try:
            return ssl.VerifyMode(value)
        except ValueError:
            pass
    raise ConfigError(f"AMQP_SSL: cert_reqs={value!r}; write required, optional or none.")
