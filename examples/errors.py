"""What the command line reports in one line, with exit code 2."""


class UsageError(Exception):
    """Something the caller can put right: an option, a path, a checkpoint that does not fit."""
