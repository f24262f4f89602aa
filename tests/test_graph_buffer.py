"""A graph kept by a torch module: moved, saved, loaded, copied, compiled and exported with it."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmssl import GraphBuffer, InteractionGraph, ops
from mmssl.errors import InputError
from mmssl.graph import NORMALIZATIONS

USERS, ITEMS = 10, 20


class Layers(nn.Module):
    def __init__(self, graph: InteractionGraph, **options) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.graph = GraphBuffer(graph, **options)
        self.user = nn.Parameter(torch.randn(graph.num_users, 4, generator=generator))
        self.item = nn.Parameter(torch.randn(graph.num_items, 4, generator=generator))

    def forward(self) -> tuple[Tensor, Tensor]:
        return ops.propagate_layers(self.graph(), self.user, self.item, 2)


class Views(Layers):
    def forward(self) -> tuple[Tensor, Tensor]:
        graph = self.graph()
        return ops.spmm(graph.ui, self.item), ops.spmm(graph.iu, self.user)


class Trained(Layers):
    """Edge values that are parameters."""

    def __init__(self, graph: InteractionGraph) -> None:
        super().__init__(graph)
        self.logit = nn.Parameter(torch.linspace(-1, 1, graph.nnz))

    def forward(self) -> tuple[Tensor, Tensor]:
        graph = self.graph().with_value(self.logit.exp())
        return ops.spmm(graph.ui, self.item), ops.spmm(graph.iu, self.user)


def make_graph(edges: int = 50, valued: bool = False, normalization="sym") -> InteractionGraph:
    user, item = torch.arange(edges) % USERS, (torch.arange(edges) * 7) % ITEMS
    value = torch.arange(1.0, edges + 1) if valued else None
    return InteractionGraph.from_edges(
        user, item, USERS, ITEMS, normalization=normalization, value=value
    )


def empty_graph(**options) -> InteractionGraph:
    return InteractionGraph.from_edges([], [], USERS, ITEMS, **{"normalization": "sym", **options})


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def same_graph(one: InteractionGraph, other: InteractionGraph) -> bool:
    """Whether all arrays have the same bits."""
    assert one.normalization == other.normalization
    pairs = list(zip(one.index, other.index, strict=True))
    for a, b in ((one.ui, other.ui), (one.iu, other.iu)):
        pairs += [(getattr(a, name), getattr(b, name)) for name in vars(a)]
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def through_a_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


both = pytest.mark.parametrize("valued", [False, True])


# state_dict


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@settings(max_examples=25)
@given(
    edges=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(1, 9)), max_size=30),
    valued=st.booleans(),
)
def test_a_saved_graph_is_loaded_bit_for_bit(normalization, edges, valued):
    user, item, value = zip(*edges, strict=True) if edges else ([], [], [])
    options = {"normalization": normalization}
    graph = InteractionGraph.from_edges(
        user, item, 7, 5, value=[v / 7 for v in value] if valued else None, **options
    )
    for start in (
        InteractionGraph.from_edges([], [], 7, 5, **options),
        InteractionGraph.from_edges([0, 6], [4, 0], 7, 5, value=[0.5, 2.0], **options),
    ):
        module = GraphBuffer(start)
        state = through_a_file(GraphBuffer(graph).state_dict())
        assert not any(module.load_state_dict(state))
        assert same_graph(module(), graph)
        again = safetensors.torch.load(safetensors.torch.save(module.state_dict()))
        assert not any(module.load_state_dict(again)) and same_graph(module(), graph)


@both
def test_entries_of_a_state(valued):
    graph = make_graph(valued=valued)
    state = Layers(graph).state_dict()
    names = ["rowptr", "col", "num_items", "normalization"] + ["value"] * valued
    assert list(state) == ["user", "item", *(f"graph.{name}" for name in names)]
    assert state["graph.col"].data_ptr() == graph.index.col.data_ptr()
    assert int(state["graph.num_items"]) == ITEMS
    assert bytes(state["graph.normalization"].tolist()) == b"sym"


@both
def test_a_module_without_edges_continues_from_a_file(valued):
    trained = Layers(make_graph(valued=valued))
    fresh = Layers(empty_graph())
    assert not same(fresh(), trained())
    fresh.load_state_dict(through_a_file(trained.state_dict()))
    assert same(fresh(), trained()) and fresh.graph().nnz == trained.graph().nnz
    fresh()[0].sum().backward()
    assert bool(fresh.item.grad.any())


def test_a_graph_that_is_not_persistent():
    module = Layers(make_graph(), persistent=False)
    assert list(module.state_dict()) == ["user", "item"]
    before = module.graph()
    assert not any(module.load_state_dict(module.state_dict()))
    assert module.graph() is before
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*graph.rowptr"):
        module.load_state_dict(Layers(make_graph()).state_dict())
    assert "persistent=False" in repr(module) and "20 items, 10 edges, binary" not in repr(module)


def test_missing_entries():
    module = Layers(make_graph())
    before, state = module.graph(), Layers(make_graph(9)).state_dict()
    for name in ("rowptr", "col", "num_items", "normalization"):
        rest = {key: value for key, value in state.items() if key != f"graph.{name}"}
        with pytest.raises(RuntimeError, match=rf"Missing key\(s\) in state_dict: .graph.{name}"):
            module.load_state_dict(rest)
        missing, unexpected = module.load_state_dict(rest, strict=False)
        assert missing == [f"graph.{name}"] and not unexpected and module.graph() is before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_items": torch.tensor(21)},
            "graph.num_items: expected 20, as this module has, got 21",
        ),
        ({"rowptr": torch.zeros(12).long()}, "graph.num_users: expected 10, as this .* got 11"),
        ({"rowptr": torch.zeros(0).long()}, "graph.num_users: expected 10, as this .* got -1"),
        ({"normalization": torch.tensor(list(b"row")).byte()}, "expected sym, as this .* got row$"),
        ({"normalization": torch.tensor([255]).byte()}, "graph.normalization: expected sym, as"),
        ({"normalization": torch.tensor([1.0])}, r"expected bytes, got \(1,\) torch.float32"),
        ({"rowptr": torch.arange(11)}, "graph.rowptr: expected ascending row pointers from 0 to"),
        ({"rowptr": torch.zeros(11)}, "graph.rowptr: expected integer ids, got torch.float32"),
        ({"rowptr": torch.zeros(11, 1).long()}, r"rowptr: expected 1 dimensions, got \(11, 1\)"),
        ({"num_items": torch.tensor([20])}, r"num_items: expected 0 dimensions, got \(1,\)"),
        ({"col": torch.full((20,), 20)}, r"graph.item: expected ids in \[0, 20\), got 20"),
        (
            {"col": torch.zeros(3).int()},
            "graph.rowptr: expected ascending row pointers from 0 to 3",
        ),
        ({"value": torch.ones(3)}, r"graph.value: expected shape \(20,\), got \(3,\)"),
        ({"value": torch.full((20,), torch.nan)}, "graph.value: expected finite numbers, got nan"),
        ({"col": [1, 2]}, "graph.col: expected a torch.Tensor, got list"),
    ],
)
def test_another_state_is_refused_in_one_line(change, message):
    module = Layers(make_graph())
    before, state = module.graph(), module.state_dict()
    state.update({f"graph.{key}": value for key, value in change.items()})
    with pytest.raises(RuntimeError, match=message) as caught:
        module.load_state_dict(state)
    assert len(str(caught.value).splitlines()) == 2  # torch's own headline, and the error
    assert module.graph() is before


def test_what_can_be_kept():
    with pytest.raises(
        InputError, match="^graph: expected an InteractionGraph, got GraphView; for"
    ):
        GraphBuffer(make_graph().ui)
    value = torch.ones(2, requires_grad=True)
    graph = InteractionGraph.from_edges([0, 1], [0, 1], 2, 2, value=value)
    with pytest.raises(InputError, match="^graph.value: .* keep it as an nn.Parameter and call"):
        GraphBuffer(graph)


# Devices and dtypes


@both
def test_moves_with_the_module(valued):
    graph = make_graph(valued=valued)
    module = nn.Sequential(Layers(graph))
    assert module.cpu()[0].graph() is graph
    moved = module.to("meta")[0].graph()
    assert moved is not graph and graph.device.type == "cpu"
    views = [t for view in (moved.ui, moved.iu) for t in vars(view).values() if t is not None]
    assert all(t.device.type == "meta" for t in views)
    # Loading works as it does for the parameters, with assign.
    module.load_state_dict(nn.Sequential(Layers(graph)).state_dict(), assign=True)
    assert same_graph(module[0].graph(), graph)


@both
def test_a_graph_moves_with_its_bits(valued):
    graph = make_graph(valued=valued)
    _ = graph.trainable_users
    moved = graph.to("meta")
    assert moved.index.col is moved.ui.col and moved.index.row is moved.iu.col
    assert moved.trainable_users.device.type == "meta"
    assert moved.normalization == graph.normalization and moved.nnz == graph.nnz
    assert graph.to("cpu") is graph and graph.to(torch.device("cpu")) is graph


def test_dtypes_of_edge_values():
    graph = make_graph(valued=True)
    module = Layers(graph)
    for convert in (module.half, module.bfloat16, module.float):
        convert()
        assert module.graph() is graph
        with ops.backend("reference"):
            assert module()[0].dtype == module.user.dtype
    module.double()
    wide = module.graph()
    assert {wide.value.dtype, wide.ui.row_scale.dtype, wide.ui.col_scale.dtype} == {torch.float64}
    assert same_graph(wide, graph.with_value(graph.value.double()))
    module.type(torch.float32)
    assert same_graph(module.graph(), graph)
    binary = make_graph()
    assert Layers(binary).double().graph() is binary


@both
def test_content_survives_to_empty(valued):
    graph = make_graph(valued=valued)
    with torch.device("meta"):
        module = nn.Sequential(GraphBuffer(graph), nn.Linear(2, 2))
    assert module.to_empty(device="cpu")[0]() is graph


# Copies, compilers, wrappers


@both
@pytest.mark.parametrize("kind", [Layers, Views])
def test_copies(kind, valued):
    module = kind(make_graph(valued=valued))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    copies += [torch.load(file, weights_only=False)]
    for other in copies:
        assert same(other(), module()) and same_graph(other.graph(), module.graph())
        assert other.graph().index.col is other.graph().ui.col  # still shared
        other.double()
        assert module()[0].dtype == torch.float32


@pytest.mark.parametrize("kind", [Layers, Views, Trained])
def test_compiles_as_one_graph_and_sees_what_is_loaded(kind):
    module = kind(make_graph())
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")

    def gradients(outputs):
        return torch.autograd.grad(sum(t.square().sum() for t in outputs), [*module.parameters()])

    for _ in range(2):
        assert all(map(torch.allclose, compiled(), module()))
        assert all(map(torch.allclose, gradients(compiled()), gradients(module())))
        module.load_state_dict(kind(make_graph(valued=True)).state_dict())
    if kind is not Trained:
        module.load_state_dict(kind(make_graph(13)).state_dict())
        assert all(map(torch.allclose, compiled(), kind(make_graph(13))()))
    module.double()
    assert compiled()[0].dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Layers, Views, Trained])
def test_compiles_with_the_default_backend(kind):
    module = kind(make_graph(valued=True))
    compiled = torch.compile(module, fullgraph=True)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(compiled(), module(), strict=True))


@both
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", [Layers, Views, Trained])
def test_exports(kind, strict, valued):
    module = kind(make_graph(valued=valued))
    expected = module()
    program = torch.export.export(module, (), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for exported in (program, torch.export.load(file)):
        assert all(map(torch.allclose, exported.module()(), expected))
    assert same(module(), expected) and type(module()[0]) is Tensor
    assert not list(module.buffers())


def test_torch_func_and_averages():
    module = Layers(make_graph())
    parameters = dict(module.named_parameters())
    assert same(torch.func.functional_call(module, parameters, ()), module())
    averaged = torch.optim.swa_utils.AveragedModel(module)
    averaged.update_parameters(module)
    assert same(averaged(), module())


@both
def test_functional_call_with_the_whole_state(valued):
    module = Views(make_graph(valued=valued))
    state, expected = module.state_dict(), module()
    assert same(torch.func.functional_call(module, state, ()), expected)
    assert same(module(), expected)
    for other, name in (
        (make_graph(9, valued), "rowptr"),
        (make_graph(valued=valued, normalization="none"), "norm"),
    ):
        state = Views(other).state_dict()
        with pytest.raises(InputError, match=f"^{name}.*: expected that of this module's graph"):
            torch.func.functional_call(module, state, ())
        assert same(module(), expected)


def test_functional_call_with_other_values_has_their_gradient():
    module = Views(make_graph(valued=True, normalization="none"))
    expected = module()
    value = torch.linspace(1, 2, module.graph().nnz, requires_grad=True)
    users, _ = torch.func.functional_call(module, {"graph.value": value}, ())
    users.sum().backward()
    edges = module.graph().index.col.long()
    assert torch.allclose(value.grad, module.item.detach()[edges].sum(-1))
    assert same(module(), expected)


def test_distributed_checkpoints_list_it():
    from torch.distributed.checkpoint import state_dict

    module, other = Layers(make_graph(valued=True)), Layers(empty_graph())
    state_dict.set_model_state_dict(other, state_dict.get_model_state_dict(module))
    assert same(other(), module())


def test_several_graphs_in_one_module():
    graphs = {name: make_graph(edges) for name, edges in (("image", 9), ("text", 23))}
    module = nn.ModuleDict({name: GraphBuffer(graph) for name, graph in graphs.items()})
    other = nn.ModuleDict({name: GraphBuffer(empty_graph()) for name in graphs})
    other.load_state_dict(through_a_file(module.state_dict()))
    assert all(same_graph(other[name](), graph) for name, graph in graphs.items())
