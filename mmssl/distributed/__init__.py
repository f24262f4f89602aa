"""Training of one model in several processes, on torch.distributed.

``group`` has the processes as a task and the trainer see them, ``launch`` joins those that torchrun
has started, ``run`` is the run directory of the processes that write nothing.
"""

import os

MODES = ("data", "sharded")
"""Values of ``--parallel``."""


def restarted() -> bool:
    """Whether torchrun has started this command again after processes had ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def reports_early() -> bool:
    """Whether this process reports what all processes find before they are connected."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"
