"""The one exception that stands for "the user gave us something we can't use"."""


class InputError(ValueError):
    """Bad input or usage.

    The message is one line that names the file or argument, what was expected and what was got.
    The command line prints it as ``error: ...`` and exits with code 2.
    """
