"""The peers of the light models, and a process that runs one of them in another environment.

``python -m benchmarks.peers.serve CASE NAME PROBLEM.npz`` answers every line on stdin, "check" or
"run", by one line of JSON; its first line is the version of the peer. Importing this module needs
numpy only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Peer(Protocol):
    """What a peer does. It is constructed from the arrays of a problem."""

    def check(self) -> list[float]:
        """Return what has to agree with ours: losses of steps, or entries of a result."""

    def run(self) -> None:
        """Do what is timed."""


class Spec(NamedTuple):
    """Where a peer is, and where it runs."""

    module: str
    cls: str
    package: str
    """Whose version is recorded."""
    environment: str = "frameworks"
    """A folder that install.sh makes, or ``OWN``: the Python that runs the benchmark."""
    inside: bool = False
    """Whether it runs in the process of the benchmark."""
    other: str = ""
    """What it computes instead of the same; it has to learn, and is no best peer."""

    def make(self, problem: Mapping[str, Array]) -> Peer:
        """Import the peer and construct it."""
        cls = getattr(importlib.import_module(f"benchmarks.peers.{self.module}"), self.cls)
        peer: Peer = cls(problem)
        return peer


OWN = "own"
PLAIN = Spec("lightgcn", "PlainPyTorch", "torch", OWN, inside=True)

LIGHTGCN = {
    "plain PyTorch": PLAIN,
    "torch_geometric": Spec("lightgcn", "Geometric", "torch-geometric"),
    "RecBole": Spec("recbole_models", "LightGCN", "recbole", "recbole"),
}
FREEDOM = {
    "plain PyTorch": Spec("freedom", "PlainPyTorch", "torch", OWN),
    "MMRec's arithmetic": Spec("freedom", "AsMMRec", "torch", OWN),
}

# Case -> name -> peer.
PEERS: dict[str, dict[str, Spec]] = {
    "epoch of lightgcn": LIGHTGCN,
    "three steps of lightgcn": LIGHTGCN,
    "epoch of bprmf": {
        "plain PyTorch": PLAIN,
        "RecBole": Spec("recbole_models", "BPR", "recbole", "recbole"),
        "implicit BPR": Spec(
            "implicit_models", "BPR", "implicit", other="SGD on one triple at a time, no Adam"
        ),
        "implicit ALS": Spec(
            "implicit_models", "ALS", "implicit", other="a sweep of weighted least squares"
        ),
    },
    "epoch of freedom": FREEDOM,
    "epoch and validation of freedom": FREEDOM,
    "fit of ease": {"NumPy": Spec("ease", "EASE", "numpy", OWN)},
}


def version(spec: Spec) -> str:
    """Return e.g. "recbole 1.2.1" of the environment that this runs in."""
    return f"{spec.package} {importlib.metadata.version(spec.package)}"


def answer(case: str, name: str, path: str) -> None:
    """Serve one peer on stdin and stdout."""
    warnings.filterwarnings("ignore")
    with np.load(path, allow_pickle=False) as arrays:
        peer = PEERS[case][name].make(dict(arrays))
    print(json.dumps(version(PEERS[case][name])), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        found = peer.check() if line.strip() == "check" else peer.run()
        seconds = time.perf_counter() - start
        print(json.dumps(found if found is not None else seconds), flush=True)


if __name__ == "__main__":
    answer(*sys.argv[1:])
