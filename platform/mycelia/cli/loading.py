"""Service classes from the names that users type: `module` or `module:Class`, as `nameko run` takes them."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from mycelia.cli.failures import FailedImport
from mycelia.errors import ConfigError, MyceliaError
from mycelia.extras import extra_with, install_command
from mycelia.nearest import nearest
from mycelia.redaction import redact_words
from mycelia.runtime import find_entrypoints
from mycelia.runtime.monkey_patches import refuse_monkey_patches
from mycelia.runtime.thread_locals import watch_locals

__all__ = ["load_services", "services_in"]


def load_services(names: list[str]) -> list[type]:
    """The service classes behind `names`, each once, in the order given.

    Raises:
        ConfigError: no such module or class, or no service in it; or what a declaration in it raised.
        FailedImport: an error inside a module, which it carries.
    """
    watch_locals()
    refuse_monkey_patches()
    found: dict[type, None] = {}
    for name in names:
        if redact_words(name) != name:
            raise ConfigError(
                "a URI stands where the module of a service is expected. The broker is named with --broker URI."
            )
        module_name, _, class_name = name.partition(":")
        module = _import(module_name)
        if class_name:
            found[_named_class(module, class_name)] = None
            continue
        services = services_in(module)
        if not services:
            raise ConfigError(
                f'module "{module_name}" has no service: no class with a method under @rpc, @event_handler or '
                "another entrypoint."
            )
        found.update(dict.fromkeys(services))
    return list(found)


def services_in(module: ModuleType) -> list[type]:
    """The classes of a module that have entrypoints; imported ones count, as in Nameko."""
    return [cls for _, cls in inspect.getmembers(module, inspect.isclass) if find_entrypoints(cls)]


def _import(name: str) -> ModuleType:
    if name.endswith(".py") or "/" in name:
        path = name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f'"{name}" is a file; name its module: {path}')
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (name == exc.name or name.startswith(exc.name + ".")):
            # the module is there; something that it imports is not
            extra = extra_with(exc.name or "")
            if extra is not None:
                raise ConfigError(
                    f'module "{name}" imports {exc.name}, which is not installed: {install_command(extra)}'
                ) from None
            raise FailedImport(name, exc) from exc
        raise ConfigError(
            f'no module "{name}". Looked from {Path.cwd()} and in the installed packages; '
            "run the command from the folder that holds the top package."
        ) from None
    except MyceliaError:
        raise
    except Exception as exc:
        raise FailedImport(name, exc) from exc


def _named_class(module: ModuleType, name: str) -> type:
    value: Any = getattr(module, name, None)
    if value is None:
        classes = [cls.__name__ for cls in services_in(module)]
        meant = nearest(name, classes)
        hint = f'Did you mean "{meant}"?' if meant else f"It has: {', '.join(classes) or 'none'}."
        raise ConfigError(f'module "{module.__name__}" has no class "{name}". {hint}')
    if not isinstance(value, type):
        raise ConfigError(f'"{module.__name__}:{name}" is a {type(value).__name__}, not a class.')
    return value
