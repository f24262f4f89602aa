"""The peers of the benchmarks agree with the released code and with this package."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bench_evaluate, workloads
from benchmarks.peers.agreement import check_agreement, make_peer
from benchmarks.peers.evaluation import NAMES
from benchmarks.peers.model import peer_name
from benchmarks.peers.step import Batch, ReleasedStep
from benchmarks.steps import make_step
from mmssl.config import load_config
from mmssl.data.dataset import Interactions
from mmssl.evaluation import Evaluator
from mmssl.graph import InteractionGraph
from tests.models.recording import (
    INERT,
    close,
    critic_name,
    gradient_scale,
    make_critic,
    make_model,
    make_setting,
    recorded_graph,
    tensor,
)

RECORDED = {
    "user_embedding": "user_id_embedding.weight",
    "item_embedding": "item_id_embedding.weight",
    "head_mix": "weight_dict.w_self_attention_cat",
}


def recorded_batch(oracle, prefix: str) -> Batch:
    ids = (oracle[f"{prefix}/{name}"].tolist() for name in ("users", "pos", "neg"))
    return Batch(*ids, tensor(oracle[f"{prefix}/uniform"]), tensor(oracle[f"{prefix}/alpha"]))


def test_released_steps_as_recorded(oracle):
    """Four steps in a row: losses, gradients, parameters and graphs."""
    setting = make_setting(oracle)
    config = setting.config
    model, critic = make_model(oracle, setting), make_critic(oracle, setting)
    peer = ReleasedStep(model, critic, config)
    names = {**RECORDED}
    for number, modality in enumerate(model.modalities):
        for kind in ("weight", "bias"):
            names[f"projection.{number}.{kind}"] = f"{modality}_trans.{kind}"
    for number in range(4):
        prefix = f"train/step{number}"
        value_rtol, grad_rtol = (1e-5, 1e-5) if number == 0 else (1e-4, 1e-3)
        batch = recorded_batch(oracle, prefix)
        terms = peer.train_critic(batch)
        close(terms["critic_fake"], oracle[f"{prefix}/D_out/call0"].mean(), value_rtol)
        close(terms["critic_real"], oracle[f"{prefix}/D_out/call1"].mean(), value_rtol)
        close(terms["critic_penalty"], oracle[f"{prefix}/gp/call0/0"], value_rtol)
        for name, _ in critic.named_parameters():
            ours = peer.critic.layers.get_parameter(peer_name(name))
            want = oracle[f"{prefix}/D_grad/{critic_name(name)}"]
            scale = gradient_scale(oracle, f"{prefix}/D_grad", name)
            close(ours.grad, want, grad_rtol, scale=scale, what=f"{prefix} D_grad {name}")
            if name not in INERT:
                want = oracle[f"{prefix}/D_after/{critic_name(name)}"]
                close(ours, want, 1e-4, what=f"{prefix} D_after {name}")
        terms = peer.train_recommender(batch, number)
        close(terms["bpr"], oracle[f"{prefix}/bpr/call0/0"], value_rtol)
        close(terms["l2"], oracle[f"{prefix}/bpr/call0/1"], value_rtol)
        close(terms["feat_reg"], oracle[f"{prefix}/feat_reg/call0/0"], value_rtol)
        recorded_cl = sum(float(oracle[f"{prefix}/cl/call{m}/0"]) for m in range(2))
        close(terms["contrastive"], config.loss.cl_weight * recorded_cl, value_rtol)
        adversarial = -config.loss.g_weight * oracle[f"{prefix}/D_out/call3"].mean()
        close(terms["adversarial"], adversarial, value_rtol)
        for name, recorded in names.items():
            parameter = peer.model.get_parameter(name)
            close(parameter.grad, oracle[f"{prefix}/model_grad/{recorded}"], grad_rtol, what=name)
            close(parameter, oracle[f"{prefix}/model_after/{recorded}"], 1e-4, what=name)
        for modality, pair in zip(model.modalities, peer.model.modality_graphs, strict=True):
            for direction, matrix in zip(("ui", "iu"), pair, strict=True):
                want = recorded_graph(oracle, f"{prefix}/graph_after/{modality}_{direction}")
                close(matrix.to_dense(), want, 1e-6, what=f"{modality}_{direction}")


@pytest.fixture(scope="module")
def world():
    workload = workloads.load("smoke")
    return workload.graph, workloads.features("smoke", workload.graph.num_items)


SMALL = ("training.batch_size=64",)


@pytest.mark.parametrize("settings", [(), ("critic.hidden=20",), ("structure.top_k_rate=0.02",)])
def test_one_step_as_the_package(world, settings):
    """From equal parameters with equal draws, without dropout."""
    worst = check_agreement(*world, load_config("released", settings=[*SMALL, *settings]))
    assert worst["loss"] < 1e-5 and 0 < worst["gradient"] < 1e-3


def test_disagreement_is_detected(world, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.step._PENALTY", 0.31)
    with pytest.raises(AssertionError, match="differ|against the peer"):
        check_agreement(*world, load_config("released", settings=SMALL))


def test_draws_are_of_the_graph(world):
    graph, features = world
    peer = make_peer(make_step(graph, features, load_config("released", settings=SMALL)))
    batch = peer.draw()
    dense = graph.ui.to_dense() > 0
    assert len(set(batch.users)) == 64
    assert dense[batch.users, batch.pos_items].all()
    assert not dense[batch.users, batch.neg_items].any()
    peer(batch, 0)
    peer(peer.draw(), 1)  # the schedule of the released code empties the graphs next
    peer(peer.draw(), 2)
    assert all(pair.ui.coalesce().values().numel() == 0 for pair in peer.model.modality_graphs)


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluation_as_the_package(world, workers):
    graph, _ = world
    held_out = workloads.held_out("smoke", graph)
    user, item = bench_evaluate.embeddings(held_out.test, graph.num_users, graph.num_items)
    peer = bench_evaluate.released(graph, held_out.test, workers)
    ours = Evaluator(held_out, "test", graph, metrics=NAMES)
    assert peer.evaluate(user, item) == pytest.approx(ours.evaluate(user, item), abs=1e-12)


@pytest.mark.parametrize(
    ("group", "pairs", "split"), [("tiny", "data", "test"), ("ties", "eval/big", "test")]
)
def test_evaluation_as_recorded(oracle, group, pairs, split):
    def interactions(name: str) -> Interactions:
        return Interactions.from_edges(*oracle[f"{pairs}/{name}_pairs"].T)

    user, item = (torch.from_numpy(oracle[f"eval/{group}/{side}"]) for side in ("ua", "ia"))
    graph = InteractionGraph.from_edges(*interactions("train"), len(user), len(item))
    got = bench_evaluate.released(graph, interactions(split), 1).evaluate(user, item)
    for name, recorded in zip(NAMES, ("recall", "precision", "ndcg", "hit_ratio"), strict=True):
        want = oracle[f"eval/{group}/{split}/{recorded}"].tolist()
        assert [got[f"{name}@{k}"] for k in (10, 20, 50)] == pytest.approx(want, abs=1e-9)
