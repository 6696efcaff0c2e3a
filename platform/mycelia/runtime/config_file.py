"""Nameko's configuration file, read as Nameko reads it (nameko/cli/main.py), without importing Nameko.

`${VAR}` and `${VAR:default}` in an unquoted scalar are replaced and the result is read as YAML, so numbers and lists
keep their type; `!env_var "…"` does the same in a quoted one; `!raw_env_var "…"` keeps text. Defaults may nest:
`${A:${B:c}}`. A name that is unset and has no default gives an empty text, which YAML reads as `null`. What is no such
variable (`${ }`, `${a b}`, a `${` that is not closed) is left as it stands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mycelia.errors import ConfigError

__all__ = ["expand", "load_config", "parse_config"]


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Replace every `${NAME}` and `${NAME:default}` in `text`; anything else with a `${` in it is the user's own text."""
    pieces: list[str] = []
    position = 0
    while (start := text.find("${", position)) >= 0:
        found = _VARIABLE.match(text, start)
        end = None if found is None else _closing_brace(text, found.end(), found[2] == ":")
        if found is None or end is None:
            pieces.append(text[position : start + 2])
            position = start + 2
            continue
        value = environ.get(found[1])
        if value is None:
            value = expand(text[found.end() : end], environ)
        pieces += (text[position:start], value)
        position = end + 1
    return "".join((*pieces, text[position:]))


_VARIABLE = re.compile(r"\$\{([^{}:\s]+)(:|(?=}))")
"""A variable up to its default (nameko/cli/main.py `ENV_VAR_MATCHER`, with the module `regex`)."""


def _closing_brace(text: str, position: int, has_default: bool) -> int | None:
    """Where the variable ends whose default begins at `position`; `None` where it does not."""
    depth = 1
    for index in range(position, len(text)):
        if text[index] == "{" and has_default:
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if not depth:
                return index
    return None


def _make_loader(environ: Mapping[str, str]) -> type[yaml.SafeLoader]:
    class Loader(yaml.SafeLoader):
        """YAML with environment variables."""

    def construct(loader: yaml.SafeLoader, node: yaml.Node, raw: bool) -> Any:
        assert isinstance(node, yaml.ScalarNode)
        text = loader.construct_scalar(node)
        value = expand(text, environ)
        if raw or value == text:
            return value
        return yaml.safe_load(value)

    def construct_env_var(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        return construct(loader, node, raw=False)

    def construct_raw_env_var(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        return construct(loader, node, raw=True)

    Loader.add_constructor("!env_var", construct_env_var)
    Loader.add_constructor("!raw_env_var", construct_raw_env_var)
    Loader.add_implicit_resolver("!env_var", _HasVariable(), None)
    return Loader


class _HasVariable:
    """What PyYAML asks of an implicit resolver: `match`. Applies to plain scalars with a `${…}` in them."""

    def match(self, text: str) -> bool:
        start = text.find("${")
        return start >= 0 and text.find("}", start) >= 0


def parse_config(
    text: str, *, source: str = "configuration", environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The mapping in a YAML text.

    Raises:
        ConfigError: not YAML (with line and column), or not a mapping at the top.
    """
    try:
        value = yaml.load(text, Loader=_make_loader(os.environ if environ is None else environ))
    except yaml.YAMLError as exc:
        raise ConfigError(f"{source} is not valid YAML: {_one_line(exc)}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{source}: expected a mapping of keys to values at the top, got {type(value).__name__}."
        )
    return value


def _one_line(exc: yaml.YAMLError) -> str:
    """What is wrong and where, without PyYAML's drawing of the place, and without words of the text: a password that
    begins with `*` or `!` reads as an alias or a tag."""
    mark = getattr(exc, "problem_mark", None)
    problem = getattr(exc, "problem", None)
    if mark is None or problem is None:
        return "it holds characters that YAML does not allow."
    problem = re.sub(r"(['\"])(?!<)(?!\1).{2,}\1", "'…'", problem)
    return f"{problem} at line {mark.line + 1}, column {mark.column + 1}."


def load_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f'configuration file "{path}" cannot be read: {exc.strerror}. Check --config.'
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f'configuration file "{path}" is not UTF-8 text: {exc}') from exc
    return parse_config(text, source=f'configuration file "{path}"')
