"""The peers of the benchmarks compute what the released code and this package compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.peers import Batch, ReleasedEvaluation, ReleasedStep
from benchmarks.peers.evaluation import NAMES
from benchmarks.peers.model import peer_name
from mmssl.config import load_config
from mmssl.evaluation import Evaluator
from mmssl.graph import InteractionGraph
from mmssl.models.critic import Critic
from mmssl.models.mmssl import MMSSL
from mmssl.models.structure import structure_learner
from mmssl.training.step import TrainingStep
from tests.conftest import make_dataset
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
        for name in critic.state_dict():
            ours = peer.critic.layers.get_parameter(peer_name(name)) if "running" not in name \
                and "num_batches" not in name else None
            if ours is None:
                continue
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
