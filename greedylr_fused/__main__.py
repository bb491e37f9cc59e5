"""`python -m greedylr_fused COMMAND`: hands the rest of the line to the command's own module."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from greedylr_fused.version import __version__

_COMMANDS = {
    "doctor": "what this machine has, and why each backend is on or off",
    "refine": "make a schedule of the gradient norms that a finished run recorded",
    "bench": "a minute of step times on this machine, beside torch's AdamW",
    "plot": "draw loss and learning rate of a run.jsonl, with raises, cuts and resets marked",
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
    parser.add_argument("command", metavar="COMMAND", help="one of those below; each has --help")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="the command's own arguments")
    given = parser.parse_args(argv)
    if given.command not in _COMMANDS:
        allowed = ", ".join(map(repr, _COMMANDS))
        parser.error(f"COMMAND: expected one of {allowed}, got {given.command!r}; --help says what each does")
    importlib.import_module(f"greedylr_fused.commands.{given.command}").main(given.rest)


def run() -> int | str | None:
    """`main` for a shell: the reader of what is printed may leave before the end, as `head` does, or know no Unicode.

    Returns:
        The exit status, as `sys.exit` takes it.
    """
    status: int | str | None = None
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        print(end="", flush=True)
    except BrokenPipeError:  # nobody is left to tell; nor may the interpreter try again when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == "__main__":
    sys.exit(run())
