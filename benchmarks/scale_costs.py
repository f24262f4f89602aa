"""The cost of a training step by formula: bytes, seconds and memory of one process.

Rates of GPUs and networks are those of their vendors' documents; the shares of them that are
reached are assumed (:data:`SHARES`). ``scale_model.py`` makes the tables of ``docs/scale.md``.

Legend: U users, I items, E edges, D embedding dim, L layers, P processes, B batch. Bytes are those
of one process, GB are 10^9 bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

FLOAT = 4
"""Bytes of a number in tables and gradients."""


class Graph(NamedTuple):
    """Sizes of a training problem."""

    users: int
    items: int
    edges: int
    width: int = 64

    @property
    def nodes(self) -> int:
        """U + I."""
        return self.users + self.items

    @property
    def table(self) -> float:
        """Bytes of one table of all nodes: 4 D (U + I)."""
        return FLOAT * self.width * self.nodes

    @property
    def gathered(self) -> float:
        """Bytes that one hop of both sides reads: a row and an index per edge and side."""
        return 2 * self.edges * (FLOAT * self.width + 4)


class Device(NamedTuple):
    """A device and its links, in GB/s and TFLOP/s, as its vendor states them."""

    name: str
    memory_gb: float
    memory_gb_s: float
    bfloat16_tflop_s: float
    """Dense matrix products."""
    link_gb_s: float
    """To the other devices of a node, one direction."""
    network_gb_s: float
    """Of each device to other nodes, one direction."""
    per_node: int = 8


H100 = Device("H100 SXM", 80, 3350, 989, 450, 50)
H200 = Device("H200 SXM", 141, 4800, 989, 450, 50)
SHARES = {"gathers": 0.5, "streams": 0.9, "links": 0.8, "products": 0.6}
"""Assumed shares of the stated rates: of the memory's by gathers of rows of 256 bytes and by
streams, of the links' by an exchange, of the tensor cores' by products."""

LAYERS = 3
KEPT = 6
"""Tables of all nodes that a step holds at its peak next to parameters, gradient and moments: the
mean of the layers and its gradient, the gradient of the ego rows, the result of the hops backward
and two of their intermediate layers."""
EVERY = Graph(10_000_000, 2_000_000, 100_000_000), Graph(10_000_000, 2_000_000, 1_000_000_000)


def degrees(graph: Graph) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return degrees of users and items and how many have each, of a random power-law graph.

    Users have ``E / (2 U sqrt(t))`` edges at the share t of the ranks, items follow Zipf's law, as
    in ``import_scale.py``.
    """

    def ranks(count: int) -> tuple[Any, Any]:
        edges = np.unique(np.geomspace(1, count + 1, 100_000).astype(np.int64))
        first, size = edges[:-1], np.diff(edges)
        return first + (size - 1) / 2, size

    user, users = ranks(graph.users)
    item, items = ranks(graph.items)
    of_user = graph.edges / (2 * np.sqrt((user - 0.5) * graph.users))
    of_item = graph.edges / (item * np.log(graph.items + 1))
    return (np.minimum(of_user, graph.items), users), (np.minimum(of_item, graph.users), items)


def halo(graph: Graph, processes: int) -> float:
    """Return the rows of others that a process needs in a hop of both sides, on average.

    Nodes are distributed at random. A node of degree d has an edge to a given process with
    probability ``1 - (1 - 1/P)^d``; all processes but its own may need its row. An order that
    keeps neighbors together needs fewer.
    """
    share = 1 / processes
    needed = sum(
        float((count * (1 - (1 - share) ** degree)).sum()) for degree, count in degrees(graph)
    )
    return needed * (processes - 1) / processes


class Step(NamedTuple):
    """Seconds of a training step of LightGCN, nothing overlapped."""

    gathers: float
    streams: float
    wire: float

    @property
    def seconds(self) -> float:
        """The sum."""
        return sum(self)

    @property
    def binds(self) -> str:
        """The largest part."""
        return self._fields[int(np.argmax(self))]


def traffic(graph: Graph, layers: int, batch: int) -> tuple[float, float]:
    """Return the bytes that a step gathers and streams, of all processes together.

    A step has L hops of both sides forward and L backward. Each reads the ego rows and writes its
    result; the loss writes two gradients of all rows, which are added, and reads and scatters three
    rows per triple twice; Adam reads four tables and writes three.
    """
    rows = FLOAT * graph.width
    gathers = 2 * layers * graph.gathered + 2 * 2 * 3 * batch * rows
    return gathers, (2 * layers * 2 + 2 + 3 + 7) * graph.table


def step(
    graph: Graph,
    device: Device,
    processes: int,
    *,
    sharded: bool = True,
    batch: int = 1 << 20,
    wire_bytes: int = FLOAT,
) -> Step:
    """Predict a step.

    Args:
        graph: The problem.
        device: The device.
        processes: P, one per device.
        sharded: Rows are divided over the processes; otherwise every process propagates over the
            whole graph and gradients are added.
        batch: B, triples of all processes.
        wire_bytes: Bytes of a number on the wire.
    """
    inside = processes <= device.per_node
    link = (device.link_gb_s if inside else device.network_gb_s) * SHARES["links"] * 1e9
    gathers, streams = traffic(graph, LAYERS, batch)
    if sharded:
        gathers, streams = gathers / processes, streams / processes
        rows = 2 * LAYERS * halo(graph, processes) + 2 * 6 * batch / processes
        sent = rows * graph.width * wire_bytes if processes > 1 else 0.0
    else:
        sent = 2 * (processes - 1) / processes * graph.table
    memory = device.memory_gb_s * 1e9
    return Step(
        gathers / memory / SHARES["gathers"], streams / memory / SHARES["streams"], sent / link
    )


def memory(graph: Graph, processes: int, *, sharded: bool = True) -> float:
    """Return the bytes of LightGCN in one process: graph, parameters, moments, layers, halo.

    The triples of an epoch are the users, items and order of the edges, int64.
    """
    index, triples = 8 * graph.edges + 8 * graph.nodes, 3 * 8 * graph.edges
    whole = index + triples + (4 + KEPT) * graph.table
    if not sharded or processes == 1:
        return whole
    buffers = 2 * FLOAT * graph.width * halo(graph, processes)  # sent and received
    return whole / processes + buffers
