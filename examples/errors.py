"""What the command line reports in one line. All ranks raise the same, so that none waits for another."""


class UsageError(Exception):
    """Something the caller can put right: an option, a path, a checkpoint that does not fit. Exit code 2."""


class WriteError(Exception):
    """A file of the run that could not be written, as on a full disk; the one before is whole. Exit code 1."""
