"""The flows behind a name that users type: `module`, `module:Class` or `module:Class.method`."""

from __future__ import annotations

import os
import sys

from mycelia.cli.loading import load_services
from mycelia.errors import ConfigError
from mycelia.flow import FlowHandler
from mycelia.runtime import find_entrypoints

__all__ = ["flows_of"]


def flows_of(name: str) -> list[tuple[type, str, FlowHandler]]:
    """Class, method and declaration of each, found from the working directory as `mycelia run` finds services.

    Raises:
        ConfigError: there is none.
        FailedImport: an error inside a module, which it carries.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, colon, rest = name.partition(":")
    class_name, _, wanted = rest.partition(".")
    found = [
        (cls, method, declared)
        for cls in load_services([f"{module}{colon}{class_name}"])
        for method, declared in find_entrypoints(cls)
        if isinstance(declared, FlowHandler) and wanted in ("", method)
    ]
    if not found:
        raise ConfigError(f"{name} has no method under @flow{' of that name' if wanted else ''}.")
    return found
