"""What a process becomes when `nameko run` hands over: the native runtime, with `nameko run`'s arguments."""

from __future__ import annotations

import argparse
import sys

from mycelia.cli.leaving import leave
from mycelia.cli.run import add_run_arguments, run_command

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run services with the arguments of `nameko run`, whose parser passes over what it does not know."""
    parser = argparse.ArgumentParser(prog="nameko run", description="Run nameko services.")
    add_run_arguments(parser)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        print(f"nameko run: unknown options passed over: {' '.join(unknown)}", file=sys.stderr)
    code = run_command(args)
    return leave(code) if argv is None else code


if __name__ == "__main__":
    sys.exit(main())
