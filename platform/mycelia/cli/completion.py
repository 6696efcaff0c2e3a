"""Shell completion, made by shtab from the command's own parser, so that it cannot fall behind."""

from __future__ import annotations

import argparse

__all__ = ["SHELLS", "completion_script"]

SHELLS = ("bash", "zsh", "fish")


def completion_script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script to evaluate: `eval "$(mycelia completion bash)"`."""
    import shtab  # for this command alone

    return shtab.complete(parser, shell) + "\n"
