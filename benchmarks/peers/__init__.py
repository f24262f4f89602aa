"""The released code's arithmetic in plain PyTorch, as an honest peer of the package.

Written from its description (docs/model.md, variant ``released``), not from its text: the same
products, the same dense rows, the same Python loops, nothing tuned for or against it. The tests
hold it to a recording of the released code and to this package.
"""

from benchmarks.peers.evaluation import ReleasedEvaluation
from benchmarks.peers.model import PeerCritic, PeerModel
from benchmarks.peers.step import Batch, ReleasedStep

__all__ = ["Batch", "PeerCritic", "PeerModel", "ReleasedEvaluation", "ReleasedStep"]
