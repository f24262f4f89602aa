"""Makes forked processes usable after ops have run on several threads in their parent.

OpenMP's threads do not survive a fork, and GNU's implementation, which torch uses, does not notice:
the first parallel region of the child, one of this package or of torch, waits for them for ever.
With one thread no parallel region is started. Workers of torch's ``DataLoader`` do the same.
"""

from __future__ import annotations

import os

import torch


def _use_one_thread() -> None:
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


os.register_at_fork(after_in_child=_use_one_thread)
