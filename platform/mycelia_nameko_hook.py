"""What the file of `mycelia nameko-hook install` calls where a Python starts as `nameko run …`.

Nameko's command imports eventlet and kombu before it looks at a service, all of it in vain where the process is handed over
afterwards. Here nothing is imported yet. The hand-over happens at once where it is certain that it would happen later:

- the configuration's `SERVICE_CONTAINER_CLS` is Mycelia's, or
- a class that is to run has a method under one of Mycelia's entrypoints, as its source tells.

What cannot be told changes nothing: Nameko starts, and hands over when it comes to it (`mycelia/handover.py`). Services are
read here, never imported.

It stands outside of the package `mycelia`, because a stock service must not pay for that either.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

ENTRYPOINTS = frozenset({"consume", "event_handler", "http", "log_handler", "rpc", "timer"})
"""Names in `mycelia` that decorate a method which Nameko finds as well."""

SETTING = "SERVICE_CONTAINER_CLS"

MAX_BYTES = 1_000_000
"""A longer source is not read: no service is, and reading it would cost more than it saves."""

MAX_FILES = 10
"""How many modules are read for one of the command line, along `from .x import Service`."""

ONLY_AST = 0x400
"""`ast.PyCF_ONLY_AST`, whose module would be imported for it."""

_has_looked = False


def look() -> None:
    """Hand the process over if it is `nameko run` of services of Mycelia's. Raises nothing, prints nothing.

    Only the first time: in a virtual environment Python reads such files twice.
    """
    global _has_looked
    if _has_looked:
        return
    _has_looked = True
    try:
        if is_nameko_run(sys.argv, sys.orig_argv) and are_ours(sys.argv[2:]):
            import mycelia  # noqa: F401  its first line hands over: this module asks for it
    except Exception:  # noqa: BLE001, S110  every Python of the environment passes here; what is wrong, Nameko says
        pass


# --- whether this is Nameko's command ----------------------------------------------------------------


def is_nameko_run(argv: Sequence[str], orig_argv: Sequence[str]) -> bool:
    """Whether the interpreter runs Nameko 2's own command, `nameko run …` or `python -m nameko run …`.

    A script of that name that does anything beside is not it: that would be passed over.
    """
    if list(argv[1:2]) != ["run"]:
        return False
    words = len(argv)
    if argv[0] == "-m":
        if list(orig_argv[-words:]) != ["nameko", *argv[1:]]:
            return False
        main = _source_of("nameko")
        return main is not None and b"nameko.cli.main.main()" in _read(
            os.path.join(os.path.dirname(main), "__main__.py")
        )
    return (
        os.path.basename(argv[0]) == "nameko"
        and list(orig_argv[-words:]) == list(argv)
        and _is_console_script(_read(argv[0]))
    )


def _is_console_script(source: bytes) -> bool:
    """Whether this is what pip or uv write for `nameko.cli.main:main`."""
    found = False
    for node in _parse(source, "nameko"):
        match _kind(node):
            case "Expr" if (
                _kind(node.value) == "Constant"
            ):  # the beginning of a script with a long path
                pass
            case "Import" if all(alias.name in ("re", "sys") for alias in node.names):
                pass
            case "ImportFrom" if node.module == "nameko.cli.main" and not node.level:
                found = [alias.name for alias in node.names] == ["main"]
            case "If" if found and not node.orelse:
                pass
            case _:
                return False
    return found


# --- whether it would hand over ----------------------------------------------------------------------


def are_ours(words: Sequence[str]) -> bool:
    """Whether it is certain that `nameko run` with these arguments would become the native runtime."""
    arguments = read_arguments(words)
    if arguments is None:
        return False
    services, config = arguments
    if config and names_our_container(_read(config)):
        return True
    return any(_is_ours(service) for service in services)


def read_arguments(words: Sequence[str]) -> tuple[list[str], str] | None:
    """The services and the file of the configuration; `None` where only argparse knows."""
    services: list[str] = []
    config = ""
    is_over = False
    left = iter(words)
    for word in left:
        option, has_value, value = word.partition("=")
        if option in ("--config", "--broker", "--backdoor-port"):
            value = value if has_value else next(left, "-")
            if value.startswith("-") or (option == "--backdoor-port" and not value.isdecimal()):
                return None
            config = value if option == "--config" else config
            is_over = bool(services)
        elif word.startswith("-") or is_over:
            return None
        else:
            services.append(word)
    return (services, config) if services else None


def names_our_container(config: bytes) -> bool:
    """Whether a file of configuration says that containers are Mycelia's."""
    if SETTING.encode() not in config or b"mycelia" not in config:
        return False
    import yaml

    root: Any = yaml.compose(config, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found = None
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value == SETTING:
            found = value if isinstance(value, yaml.ScalarNode) else None
    return found is not None and found.value.partition(".")[0] == "mycelia"


def _is_ours(service: str) -> bool:
    module, _, cls = service.partition(":")
    return _declares(module, cls or None, [MAX_FILES])


def _declares(module: str, cls: str | None, files_left: list[int]) -> bool:
    """Whether the class, or any if `None`, that this module has at its top level has an entrypoint of Mycelia's."""
    path = _source_of(module)
    files_left[0] -= 1
    if path is None or files_left[0] < 0:
        return False
    package = module if os.path.basename(path) == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in _parse(_read(path), path):
        kind = _kind(node)
        if kind == "ClassDef" and cls in (None, node.name) and _has_entrypoint(node, names):
            return True
        names.difference_update(_bound_by(node))
        if kind == "ImportFrom" and node.module == "mycelia" and not node.level:
            names.update(
                alias.asname or alias.name for alias in node.names if alias.name in ENTRYPOINTS
            )
        elif kind == "Import":
            names.update(
                f"{alias.asname or alias.name}.{name}"
                for alias in node.names
                if alias.name == "mycelia"
                for name in ENTRYPOINTS
            )
        elif kind == "ImportFrom" and (own := _own_module(node, package)) not in ("", module):
            for alias in node.names:
                if cls in (None, alias.asname or alias.name) and _declares(
                    own, alias.name, files_left
                ):
                    return True
    return False


def _own_module(node: Any, package: str) -> str:
    """The module of `from … import …` if it is of the same package as the importer; else empty."""
    if node.level:
        parts = package.split(".")
        base = parts[: len(parts) - node.level + 1]
        return (
            ".".join([*base, *([node.module] if node.module else [])]) if base[:1] != [""] else ""
        )
    top = package.partition(".")[0]
    return node.module if top and node.module.partition(".")[0] == top else ""


def _has_entrypoint(cls: Any, names: set[str]) -> bool:
    names = set(names)
    for node in cls.body:
        if _kind(node) in ("FunctionDef", "AsyncFunctionDef") and any(
            _dotted(decorator) in names for decorator in node.decorator_list
        ):
            return True
        names -= _bound_by(node)
    return False


def _dotted(decorator: Any) -> str:
    """`rpc` of `@rpc` and `@rpc(…)`, `mycelia.rpc` of `@mycelia.rpc`."""
    if _kind(decorator) == "Call":
        decorator = decorator.func
    if _kind(decorator) == "Attribute" and _kind(decorator.value) == "Name":
        return f"{decorator.value.id}.{decorator.attr}"
    return decorator.id if _kind(decorator) == "Name" else ""


def _bound_by(node: Any) -> set[str]:
    """The names that a statement may give another meaning, each also with what is read from it.

    More than it does is no harm: then nothing can be told.
    """
    names: set[str] = set()
    for child in _walk(node):
        kind = _kind(child)
        if kind == "Name" and _kind(child.ctx) != "Load":
            names.add(child.id)
        elif kind == "alias":
            names.add((child.asname or child.name).partition(".")[0])
        elif kind == "Attribute" and _kind(child.ctx) != "Load" and _kind(child.value) == "Name":
            names.add(child.value.id)
        elif isinstance(
            name := getattr(child, "name", None), str
        ):  # a function, a class, `as error`, a pattern
            names.add(name)
    if "*" in names:
        names |= ENTRYPOINTS
    return names | {f"{name}.{entrypoint}" for name in names for entrypoint in ENTRYPOINTS}


def _walk(node: Any) -> Iterator[Any]:
    """The node and all below it, without what is inside functions and classes, which binds nothing outside."""
    yield node
    if _kind(node) in ("FunctionDef", "AsyncFunctionDef", "ClassDef", "Lambda"):
        return
    for field in node._fields:
        value = getattr(node, field, None)
        for child in value if isinstance(value, list) else (value,):
            if hasattr(child, "_fields"):
                yield from _walk(child)


# --- files -------------------------------------------------------------------------------------------


def _source_of(module: str) -> str | None:
    """The file of a module, found as Nameko finds it, from the current folder on; `None` for one of another kind."""
    from importlib.machinery import PathFinder, SourceFileLoader

    top = module.partition(".")[0]
    if top in sys.modules or top in sys.stdlib_module_names:
        return None
    path: Any = [os.getcwd(), *sys.path]
    spec = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = None if path is None else PathFinder.find_spec(name, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec.origin if spec is not None and isinstance(spec.loader, SourceFileLoader) else None


def _read(path: str) -> bytes:
    if os.path.getsize(path) > MAX_BYTES:
        return b""
    with open(path, "rb") as file:
        return file.read()


def _parse(source: bytes, path: str) -> list[Any]:
    """The statements of a source."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are said when the module is imported
        tree: Any = compile(source, path, "exec", ONLY_AST, dont_inherit=True)
    return list(tree.body)


def _kind(node: Any) -> str:
    return type(node).__name__
