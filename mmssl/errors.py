"""The exceptions that the command line reports in one line."""


class InputError(ValueError):
    """Bad input or usage.

    The message is one line that names the file or argument, what was expected and what was got.
    The command line prints it as ``error: ...`` and exits with code 2.
    """


class Diverged(RuntimeError):  # noqa: N818
    """Training produced NaN or Inf.

    The message is one line that names the loss term or tensor and the step. The command line prints
    it as ``error: ...`` and exits with code 2.
    """


class NoKernel(RuntimeError):  # noqa: N818
    """Backend "native" was required where no kernel exists.

    The message is one line that names the op and the reason. The command line prints it as
    ``error: ...`` and exits with code 2.
    """


class LostProcess(RuntimeError):  # noqa: N818
    """Another process of a run in several processes has ended.

    The message is one line. The command line prints it, from one of the remaining processes, as
    ``error: ...`` and exits with code 1.

    Args:
        reason: How it was noticed.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            "lost the connection to another process of the run, which failed or was killed: "
            f"{reason}"
        )
