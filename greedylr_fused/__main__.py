"""`python -m greedylr_fused COMMAND`: hands the rest of the line to the command's own module."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from greedylr_fused.version import __version__

_COMMANDS = {
    "doctor": "what this machine has, and why each backend is on or off",
    "refine": "make a schedule of the gradient norms that a finished run recorded",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; only its module is imported.

    Args:
        argv: the words after `python -m greedylr_fused`. Default None: those of this process.
    """
    width = max(map(len, _COMMANDS))
    parser = argparse.ArgumentParser(
        prog="python -m greedylr_fused",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:{width}}  {what}" for name, what in _COMMANDS.items()),
    )
    parser.add_argument("--version", action="version", version=f"greedylr_fused {__version__}")
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="one of those below; each has --help")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="the command's own arguments")
    given = parser.parse_args(argv)
    importlib.import_module(f"greedylr_fused.{given.command}").main(given.rest)


if __name__ == "__main__":
    main()
