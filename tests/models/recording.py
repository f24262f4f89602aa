"""The recording of the released code as this package sees it: names, weights, graphs, factors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from mmssl import ops
from mmssl.config import Config, load_config
from mmssl.graph import InteractionGraph
from mmssl.models.mmssl.critic import Critic
from mmssl.models.mmssl.model import MMSSL, MultiModalEmbeddings
from mmssl.models.mmssl.rows import FactoredRows, similarity_rows
from mmssl.ops import Triples
from mmssl.ops.masked_similarity import batch_edges

# Biases that a following BatchNorm cancels: the released activations in between are identities.
INERT = ("bias", "head.0.bias", "head.1.bias")
STATES = ("init", "top3", "empty")


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def close(got, expected, rtol: float, *, scale: float = 0.0, atol: float = 0.0, what="") -> None:
    """Largest deviation, relative to the largest expected entry or ``scale`` if that is larger."""
    got = np.asarray(got.detach() if isinstance(got, torch.Tensor) else got, dtype=np.float64)
    expected = np.asarray(expected, dtype=np.float64)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, recorded {expected.shape}"
    if expected.size == 0:
        return
    scale = max(np.abs(expected).max(), scale, 1e-30)
    error = max(np.abs(got - expected).max() - atol, 0.0) / scale
    assert error <= rtol, f"{what}: relative error {error:.2e} > {rtol:.0e}"


class Setting(NamedTuple):
    """The recording's world, rebuilt with the package."""

    config: Config
    graph: InteractionGraph
    features: dict[str, torch.Tensor]
    batch: Triples


def make_setting(oracle) -> Setting:
    """Every size and hyper-parameter from the recording."""
    arg = {k.removeprefix("args/"): oracle[k] for k in oracle.files if k.startswith("args/")}
    names = [
        k.removeprefix("data/").removesuffix("_feat")
        for k in oracle.files
        if k.startswith("data/") and k.endswith("_feat")
    ]
    config = load_config("released").replace(
        {
            "model": {
                "embedding_dim": int(arg["embed_size"]),
                "num_layers": len(arg["weight_size"]),
                "num_heads": int(arg["head_num"]),
                "id_weight": float(arg["id_cat_rate"]),
                "feat_weight": float(arg["model_cat_rate"]),
                "dropout": 0.0,
            },
            "critic": {
                "dropout": [0.0, 0.0],
                "gumbel_tau": float(arg["real_data_tau"]),
                "gumbel_scale": float(arg["log_log_scale"]),
                "similarity_scale": float(arg["ui_pre_scale"]),
                "gp_weight": float(arg["gp_rate"]),
                "lr": float(arg["D_lr"]),
            },
            "structure": {
                "top_k_rate": float(arg["m_topk_rate"]),
                "refresh_interval": int(arg["T"]),
            },
            "loss": {
                "decay": float(arg["regs"][0]),
                "feat_reg_decay": float(arg["feat_reg_decay"]),
                "cl_weight": float(arg["cl_rate"]),
                "temperature": float(arg["tau"]),
                "g_weight": float(arg["G_rate"]),
            },
            "training": {"batch_size": int(arg["batch_size"]), "lr": float(arg["lr"])},
        },
        source="recording",
    )
    num_users, num_items = (int(v) for v in oracle["graph/ui/shape"])
    pairs = tensor(oracle["data/train_pairs"])
    graph = InteractionGraph.from_edges(pairs[:, 0], pairs[:, 1], num_users, num_items)
    features = {name: tensor(oracle[f"data/{name}_feat"]) for name in names}
    batch = Triples(*(tensor(oracle[f"batch/{k}"]) for k in ("users", "pos", "neg")))
    return Setting(config, graph, features, batch)


def recorded_name(name: str, modalities: tuple[str, ...]) -> str:
    """Our parameter's name -> the recording's."""
    if name == "attention.output":
        return "weight_dict.w_self_attention_cat"
    if name.startswith("projection."):
        _, position, kind = name.split(".")
        return f"{modalities[int(position)]}_trans.{kind}"
    return name.replace("user_embedding", "user_id_embedding.weight").replace(
        "item_embedding", "item_id_embedding.weight"
    )


def critic_name(name: str) -> str:
    """Our critic parameter's name -> the recording's: one Sequential called `net`."""
    if name in ("weight", "bias"):
        return f"net.0.{name}"
    _, position, kind = name.split(".")
    return f"net.{(2, 4, 6, 8)[int(position)]}.{kind}"


def critic_array(oracle, prefix: str, name: str) -> np.ndarray:
    """A recorded array of the critic; our first weight is (I, h), the recording's (h, I)."""
    array = oracle[f"{prefix}/{critic_name(name)}"]
    return array.T if name == "weight" else array


def gradient_scale(oracle, prefix: str, name: str) -> float:
    """Largest gradient of the layer's weight.

    A bias in front of BatchNorm has no effect (the released activations are identities), so its
    exact gradient is 0 and what was recorded is rounding, to be judged by its layer's gradients.
    """
    weight = critic_name(name).replace("bias", "weight")
    return float(np.abs(oracle[f"{prefix}/{weight}"]).max())


def make_model(oracle, setting: Setting) -> MMSSL:
    model = MMSSL(setting.graph, setting.features, setting.config.model)
    model.load_state_dict(
        {
            name: tensor(oracle[f"model/{recorded_name(name, model.modalities)}"])
            for name in model.state_dict()
        }
    )
    return model


def make_critic(oracle, setting: Setting) -> Critic:
    critic = Critic(setting.graph.num_items, setting.config.critic)
    critic.load_state_dict(
        {name: tensor(critic_array(oracle, "D", name)) for name in critic.state_dict()}
    )
    return critic


def recorded_graph(oracle, prefix: str) -> torch.Tensor:
    """(R, C) dense matrix of a recorded CSR."""
    shape = tuple(int(v) for v in oracle[f"{prefix}/shape"])
    dense = torch.zeros(shape)
    pointer = tensor(oracle[f"{prefix}/indptr"]).long()
    row = torch.arange(shape[0]).repeat_interleave(pointer.diff())
    column = tensor(oracle[f"{prefix}/indices"]).long()
    return dense.index_put((row, column), tensor(oracle[f"{prefix}/data"]), accumulate=True)


def modality_graphs(oracle, setting: Setting, state: str) -> list[InteractionGraph]:
    """The graphs a recorded forward used, from their edges."""
    graphs = []
    for name in setting.features:
        adjacency = recorded_graph(oracle, f"fwd_{state}/graph/{name}_ui")
        user, item = adjacency.nonzero(as_tuple=True)
        graph = InteractionGraph.from_edges(user, item, *adjacency.shape)
        close(graph.ui.to_dense(), adjacency, 1e-6, what=f"{state} {name}_ui")
        expected = recorded_graph(oracle, f"fwd_{state}/graph/{name}_iu")
        close(graph.iu.to_dense(), expected, 1e-6, what=f"{state} {name}_iu")
        graphs.append(graph)
    return graphs


def recorded_embeddings(oracle, setting: Setting, state: str) -> MultiModalEmbeddings:
    def stack(kind: str) -> torch.Tensor:
        return torch.stack(
            [tensor(oracle[f"fwd_{state}/out/{m}_{kind}"]) for m in setting.features]
        )

    return MultiModalEmbeddings(
        tensor(oracle[f"fwd_{state}/out/u_g"]),
        tensor(oracle[f"fwd_{state}/out/i_g"]),
        stack("user_feats"),
        stack("item_feats"),
        stack("user_id"),
        stack("item_id"),
    )


def similarity(setting: Setting, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    return ops.masked_similarity(user, item, setting.batch.user, setting.graph.ui)


def factors(setting: Setting, user: torch.Tensor, item: torch.Tensor) -> FactoredRows:
    edges = batch_edges(setting.graph.ui, setting.batch.user)
    return similarity_rows(user[None], item[None], setting.batch.user, edges)


def fake_factors(setting: Setting, out: MultiModalEmbeddings) -> list[FactoredRows]:
    pairs = zip(out.user_feature, out.item_feature, strict=True)
    return [factors(setting, user, item) for user, item in pairs]
