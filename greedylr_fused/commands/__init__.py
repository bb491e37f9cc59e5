"""`python -m greedylr_fused COMMAND`: `doctor`, `bench`, `plot` and `refine`, each a module or folder of its name.

`gradient_norms.py` reads the norms of which `refine` makes a schedule.
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import NoReturn


def fail(parser: ArgumentParser, error: Exception) -> NoReturn:
    """End a command with status 2 and one line: the error's own message, which says what to do; a system's message
    about a file is completed here.
    """
    told = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        told = (
            f"{error.filename}: {error.strerror}; name a file that is there to be read, or one to be written in a "
            "folder that is there"
        )
    parser.exit(2, f"{parser.prog}: {told}\n")
