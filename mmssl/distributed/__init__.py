"""Training of one model in several processes, on torch.distributed.

``group`` has the processes as a task and the trainer see them, ``launch`` joins those that torchrun
has started, ``watch`` ends a process that waits for one that is gone, ``run`` is the run directory
of the processes that write nothing.
"""

import os

MODES = ("data", "sharded")
"""Values of ``--parallel``."""


def restarted() -> bool:
    """Whether torchrun has started this command again after processes had ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def launched() -> bool:
    """Whether torchrun has started this command."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def reports_early() -> bool:
    """Whether this process reports what all processes find before they are connected."""
    return not launched() or os.environ.get("RANK", "0") == "0"
