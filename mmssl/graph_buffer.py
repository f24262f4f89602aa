"""A graph as a part of a torch module.

Legend: U users, I items, E edges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.arrays import as_ids
from mmssl.errors import InputError
from mmssl.graph import InteractionGraph
from mmssl.indexing import check_pointers, rows_of

_REQUIRED = ("rowptr", "col", "num_items", "normalization")
_OPTIONAL = ("value",)


class GraphBuffer(nn.Module):
    """A graph that a module keeps, moves and saves, as ``nn.Buffer`` is for a tensor.

    Calling it returns the graph, on the device of the module::

        class Recommender(nn.Module):
            def __init__(self, graph: InteractionGraph) -> None:
                super().__init__()
                self.graph = GraphBuffer(graph)
                self.user = nn.Parameter(torch.randn(graph.num_users, 64))
                self.item = nn.Parameter(torch.randn(graph.num_items, 64))

            def forward(self) -> tuple[Tensor, Tensor]:
                return ops.propagate_layers(self.graph(), self.user, self.item, 3)

    A graph never changes: what moves the module or loads it puts another one in its place.

    ``to(device)``, ``cuda()`` and ``cpu()`` move the graph. ``double()`` and ``float()`` convert
    its edge values, with scales of the same dtype; ``half()`` and ``bfloat16()`` leave them as they
    are, since the ops sum in float32. A binary graph has no values to convert.

    ``state_dict()`` has its edges: ``rowptr``, ``col``, ``num_items``, ``normalization`` and,
    unless the graph is binary, ``value``. Loading puts them in place of the edges that are there,
    whatever their number. The numbers of users and items and the normalization are settings of the
    module, like the shape of a parameter: a state with others is an error. So a module that is
    going to load its state can be built with a graph without edges. What is loaded is checked as in
    :meth:`mmssl.graph.InteractionGraph.from_edges`; values keep the dtype they were saved in.

    ``torch.func.functional_call`` takes a whole ``state_dict()`` of the module. It may change the
    values of the edges, which then have a gradient, but not the edges.

    It has neither parameters nor buffers, so that ``DistributedDataParallel`` does not send the
    graph from process to process in every step. In an exported program the graph is a constant.

    Args:
        graph: Its edge values, if any, must not require a gradient: keep them as an
            ``nn.Parameter`` and call ``self.graph().with_value(...)`` in ``forward``.
        persistent: Whether ``state_dict()`` has the graph.

    Raises:
        InputError: ``graph`` is something else, or its values require a gradient.
    """

    def __init__(self, graph: InteractionGraph, *, persistent: bool = True) -> None:
        super().__init__()
        if not isinstance(graph, InteractionGraph):
            raise InputError(
                f"graph: expected an InteractionGraph, got {type(graph).__name__}; for any sparse "
                "matrix, take InteractionGraph.from_torch(matrix, normalization='none') and its ui"
            )
        if graph.value is not None and graph.value.requires_grad:
            raise InputError(
                "graph.value: expected a tensor that does not require a gradient, got one that "
                "does; keep it as an nn.Parameter and call self.graph().with_value(...) in forward"
            )
        self.persistent = persistent
        self._graph = graph

    def forward(self) -> InteractionGraph:
        """Return the graph."""
        return self._graph

    # torch.distributed.checkpoint looks up every entry of a state_dict as an attribute, and
    # torch.func.functional_call assigns it and then what was there before.

    @property
    def rowptr(self) -> Tensor:
        """(U + 1,) int64, the first edge of every user."""
        return self._graph.index.rowptr

    @rowptr.setter
    def rowptr(self, array: Tensor) -> None:
        self._check_same("rowptr", array)

    @property
    def col(self) -> Tensor:
        """(E,) int32, the item of every edge, by user."""
        return self._graph.index.col

    @col.setter
    def col(self, array: Tensor) -> None:
        self._check_same("col", array)

    @property
    def num_items(self) -> Tensor:
        """I."""
        return torch.tensor(self._graph.num_items, device=self._graph.device)

    @num_items.setter
    def num_items(self, array: Tensor) -> None:
        self._check_same("num_items", array)

    @property
    def normalization(self) -> Tensor:
        """The name of the normalization in bytes, uint8."""
        name = list(self._graph.normalization.encode())
        return torch.tensor(name, dtype=torch.uint8, device=self._graph.device)

    @normalization.setter
    def normalization(self, array: Tensor) -> None:
        self._check_same("normalization", array)

    @property
    def value(self) -> Tensor | None:
        """(E,) edge values by user; None for a binary graph."""
        return self._graph.value

    @value.setter
    def value(self, array: Tensor) -> None:
        self._graph = self._graph.with_value(array)

    def _check_same(self, name: str, array: Tensor) -> None:
        """Raise InputError unless an array is that of the graph, which never changes."""
        own: Tensor = getattr(self, name)
        if own.shape != array.shape or not torch.equal(own, array.to(own.device)):
            raise InputError(
                f"{name}: expected that of this module's graph, got another one; "
                "load_state_dict() puts another graph in its place"
            )

    def extra_repr(self) -> str:
        """Describe the graph where a module is printed."""
        return f"{self._graph!r}" + ("" if self.persistent else ", persistent=False")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GraphBuffer:
        # Some of what torch does to the tensors of a module would ruin a graph: type() converts
        # indices as well, to_empty() drops the content. Only device and dtype are taken from it.
        super()._apply(fn, recurse)
        graph = self._graph
        device = fn(torch.empty(0, dtype=torch.int64, device=graph.device)).device
        graph = graph.to(device)
        if graph.value is not None:
            dtype = fn(graph.value.new_empty(0)).dtype
            if dtype != graph.value.dtype and dtype in (torch.float32, torch.float64):
                graph = graph.with_value(graph.value.to(dtype))
        self._graph = graph
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.persistent:
            state = {key: getattr(self, key) for key in (*_REQUIRED, *_OPTIONAL)}
            destination.update({prefix + key: t for key, t in state.items() if t is not None})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        known = (*_REQUIRED, *_OPTIONAL) if self.persistent else ()
        state = {key: state_dict[prefix + key] for key in known if prefix + key in state_dict}
        rest = {key: t for key, t in state_dict.items() if key.removeprefix(prefix) not in state}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        missing = [prefix + key for key in _REQUIRED if self.persistent and key not in state]
        if strict:
            missing_keys.extend(missing)
        if missing or not state:
            return
        try:
            self._graph = _loaded(state, self._graph)
        except InputError as error:
            error_msgs.append(f"{prefix}{error}")


def _loaded(state: dict[str, Any], current: InteractionGraph) -> InteractionGraph:
    """Build the graph of a saved state, which must fit the module whose graph is the current one.

    Raises:
        InputError: The state is of another shape or normalization, or damaged.
    """
    # A module on the meta device takes what it loads from where it is.
    device = None if current.device.type == "meta" else current.device
    for key, array in state.items():
        if not isinstance(array, Tensor):
            raise InputError(f"{key}: expected a torch.Tensor, got {type(array).__name__}")
        state[key] = array.detach().to(device)
    rowptr, col, num_items = (as_ids(key, state[key]) for key in ("rowptr", "col", "num_items"))
    name = state["normalization"]
    for key, array, dims in (("rowptr", rowptr, 1), ("col", col, 1), ("num_items", num_items, 0)):
        if array.dim() != dims:
            raise InputError(f"{key}: expected {dims} dimensions, got {tuple(array.shape)}")
    if name.dim() != 1 or name.dtype != torch.uint8:
        raise InputError(f"normalization: expected bytes, got {tuple(name.shape)} {name.dtype}")
    for key, expected, got in (
        ("num_users", current.num_users, rowptr.numel() - 1),
        ("num_items", current.num_items, int(num_items)),
        ("normalization", current.normalization, bytes(name.tolist()).decode(errors="replace")),
    ):
        if got != expected:
            raise InputError(f"{key}: expected {expected}, as this module has, got {got!s:.60}")
    check_pointers("rowptr", rowptr, col.numel())
    return InteractionGraph.from_edges(
        rows_of(rowptr, col.numel()),
        col,
        current.num_users,
        current.num_items,
        normalization=current.normalization,
        value=state.get("value"),
    )
