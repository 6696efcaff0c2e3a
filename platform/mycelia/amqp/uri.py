"""Where the broker is: `AMQP_URI` and `AMQP_SSL` as Nameko's configuration writes them. Pure but for reading certificates.

    amqp://user:password@host:port/vhost?heartbeat=10;amqp://second-host/vhost

`amqp` and `pyamqp` (kombu's name for it) are plain, `amqps` is TLS. Several brokers of one cluster are separated by `;`;
one that is only `host` or `host:port` takes the rest from the first. An empty path, `/`, `//` and `/%2F` all name the
virtual host "/", as in kombu.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from mycelia.errors import ConfigError

__all__ = ["Endpoint", "parse_uri", "redact", "ssl_context"]

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
        ConfigError: no broker can be read from it. The message shows no password.
    """
    endpoints: list[Endpoint] = []
    for part in uri.split(";"):
        part = part.strip()
        if not part:
            continue
        if "://" in part:
            endpoints.append(_parse_one(part))
        elif endpoints:
            other = _parse_one(f"amqp://{part}")
            first = endpoints[0]
            port = other.port if _names_port(part) else first.port
            endpoints.append(replace(first, host=other.host, port=port))
        else:
            raise ConfigError(
                f'AMQP_URI: "{redact(part)}" has no scheme. Write amqp://user:password@host:port/vhost.'
            )
    if not endpoints:
        raise ConfigError("AMQP_URI is empty. Write amqp://user:password@host:port/vhost.")
    return endpoints


def _names_port(part: str) -> bool:
    return urlsplit(f"//{part}").port is not None


def _parse_one(uri: str) -> Endpoint:
    shown = redact(uri)
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f'AMQP_URI: "{shown}" cannot be read: {exc}.') from None
    tls = _TLS_BY_SCHEME.get(parts.scheme)
    if tls is None:
        raise ConfigError(
            f'AMQP_URI: "{shown}" has scheme "{parts.scheme}". Use amqp, amqps or pyamqp.'
        )
    return Endpoint(
        host=parts.hostname or "localhost",
        port=port or (5671 if tls else 5672),
        user=unquote(parts.username) if parts.username else "guest",
        password=unquote(parts.password) if parts.password is not None else "guest",
        vhost=unquote(parts.path[1:]) or "/",
        tls=tls,
        heartbeat=_heartbeat(parts.query, shown),
    )


def _heartbeat(query: str, shown: str) -> float | None:
    # Other options in a URI are kombu transport options; they have no meaning here and are passed over.
    text = dict(parse_qsl(query)).get("heartbeat")
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f'AMQP_URI: "{shown}" has heartbeat={text!r}; write seconds, 0 for none.'
        ) from None


def redact(uri: str) -> str:
    """`uri` with each password as `***`, fit for logs and errors."""
    shown = []
    for part in uri.split(";"):
        scheme, separator, rest = part.rpartition("://")
        authority, slash, path = rest.partition("/")
        credentials, at, host = authority.rpartition("@")
        if not at and "@" in path:  # a password with a bare "/" in it
            credentials, at, host = rest.rpartition("@")
            slash = path = ""
        if at:
            user, colon, _ = credentials.partition(":")
            credentials = user + (":***" if colon else "")
        shown.append(f"{scheme}{separator}{credentials}{at}{host}{slash}{path}")
    return ";".join(shown)


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
    settings: dict[str, Any] = {} if option is True else dict(option)
    unknown = sorted(settings.keys() - _SSL_KEYS)
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
    except (OSError, ssl.SSLError) as exc:
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
