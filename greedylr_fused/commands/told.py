"""What a command says of an error, in one line."""

from __future__ import annotations


def told(error: Exception) -> str:
    """Its own words, which say what to do; the system's words about a file do not."""
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"{error.filename}: {error.strerror}; name a file that is there to be read, or one to be written in a "
            "folder that is there"
        )
    return str(error)
