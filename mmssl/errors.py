"""The exceptions that stand for "the user gave us something we can't use"."""


class InputError(ValueError):
    """Bad input or usage.

    The message is one line that names the file or argument, what was expected and what was got.
    The command line prints it as ``error: ...`` and exits with code 2.
    """


class Diverged(InputError):
    """Training left the finite numbers: the fault of a configuration, not of a file or a flag."""
