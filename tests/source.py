"""The platform's source, parsed for tests that read it."""

from __future__ import annotations

import ast
import gc

__all__ = ["parse"]


def parse(source: str) -> ast.Module:
    """`ast.parse(source)`, without the garbage collector meanwhile.

    A task whose exception nobody asked for is logged when it is collected; Python 3.11 parses the line to underline it
    in the traceback, and then the outer parse fails with "AST constructor recursion depth mismatch" (CPython gh-106905).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if was_enabled:
            gc.enable()
