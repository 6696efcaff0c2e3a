"""The optional parts of the installation (`pip install "mycelia[http]"`), and one line for whoever lacks one.

A program that only calls needs none of them. Nothing of them is imported before a service asks for it, so what is missing is
missed there, and said there.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from mycelia.errors import ConfigError

__all__ = ["EXTRAS", "extra_with", "install_command", "is_installed", "require_extra"]

EXTRAS = {
    "http": ("starlette", "uvicorn", "websockets"),
    "reload": ("watchfiles",),
    "tracing": ("opentelemetry",),
    "metrics": ("prometheus_client",),
    "cron": ("cronsim", "tzdata"),
    "top": ("rich",),
    "logs": ("backports.zstd",),
    "sql": ("sqlalchemy", "greenlet"),
    "parquet": ("pyarrow",),
    "postgresql": ("psycopg",),
    "nameko": ("nameko", "kombu", "eventlet", "werkzeug"),
}
"""What can be imported with each extra and not without; by the names of the modules."""


def install_command(extra: str) -> str:
    """What to type to have it."""
    return f'pip install "mycelia[{extra}]"'


def extra_with(module: str) -> str | None:
    """The extra that brings a module, by its dotted name; `None` for a module of nobody's."""
    names = (module, module.partition(".")[0])
    return next((e for e, modules in EXTRAS.items() if any(one in modules for one in names)), None)


def is_installed(extra: str) -> bool:
    """Whether all of the extra is installed. Imports nothing."""
    return not _missing(extra)


def require_extra(extra: str, who: str) -> None:
    """Raise unless the extra is installed.

    Args:
        who: what needs it, as the line begins: `hello.page: @http("GET", "/")`.

    Raises:
        ConfigError: a part of it is not installed. Names the part and the command that installs it.
    """
    missing = _missing(extra)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            f"{who} needs {', '.join(missing)}, which {verb} not installed: {install_command(extra)}"
        )


def _missing(extra: str) -> list[str]:
    # What has been imported need not have a spec any more: kombu, for one, puts another module in its place.
    return [
        module
        for module in EXTRAS[extra]
        if sys.modules.get(module) is None and not _is_there(module)
    ]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is a part of
        return False
