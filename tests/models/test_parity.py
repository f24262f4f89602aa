"""Variant `released` against arrays recorded from the released code, group by group."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmssl import ops
from mmssl.graph import InteractionGraph
from mmssl.indexing import row_edges
from mmssl.models.mmssl.critic import critic_loss
from mmssl.models.mmssl.loss import contrastive_loss, recommender_loss
from mmssl.models.mmssl.model import MultiModalEmbeddings
from mmssl.models.mmssl.rows import dense_real_rows, dense_similarity, real_rows
from mmssl.models.mmssl.step import StepInput, TrainingStep
from mmssl.models.mmssl.structure import structure_learner
from mmssl.ops import Triples
from mmssl.ops.masked_similarity import batch_edges
from tests.models.recording import (
    INERT,
    STATES,
    Setting,
    close,
    critic_array,
    critic_name,
    factors,
    fake_factors,
    gradient_scale,
    make_critic,
    make_model,
    modality_graphs,
    recorded_embeddings,
    recorded_graph,
    recorded_name,
    similarity,
    tensor,
)


def test_interaction_graph(oracle, setting):
    close(setting.graph.ui.to_dense(), recorded_graph(oracle, "graph/ui"), 1e-6)
    close(setting.graph.iu.to_dense(), recorded_graph(oracle, "graph/iu"), 1e-6)
    index = setting.graph.index
    np.testing.assert_array_equal(index.rowptr, oracle["data/train_csr/indptr"])


@pytest.mark.parametrize("state", STATES)
def test_forward(oracle, setting, state):
    model = make_model(oracle, setting).eval()
    model.modality_graphs = modality_graphs(oracle, setting, state)
    expected = recorded_embeddings(oracle, setting, state)[:6]
    for name, got, want in zip(
        MultiModalEmbeddings._fields[:6], model()[:6], expected, strict=True
    ):
        close(got, want, 1e-6, what=name)


def test_attention(oracle, setting):
    model = make_model(oracle, setting)
    views = [tensor(oracle[f"attention/in_{m}"]) for m in setting.features]
    expected = oracle["attention/Z"]  # per modality; the model goes on with their mean
    for view, want in zip(views, expected, strict=True):
        close(model.attention(view[None]), want, 2e-6)
    close(model.attention(torch.stack(views)), expected.mean(0), 2e-6)


def contrastive_cases(oracle):
    return sorted({k.split("/")[1] for k in oracle.files if k.startswith("cl/N")})


def test_info_nce(oracle):
    cases = contrastive_cases(oracle)
    assert cases
    for case in cases:
        temperatures = {k.split("/")[2] for k in oracle.files if k.startswith(f"cl/{case}/tau")}
        assert temperatures
        for temperature in temperatures:
            for dtype, suffix, rtol in ((torch.float32, "", 1e-5), (torch.float64, "64", 1e-10)):
                key = f"cl/{case}/{temperature}"
                z1 = tensor(oracle[f"cl/{case}/z1"]).to(dtype).requires_grad_()
                z2 = tensor(oracle[f"cl/{case}/z2"]).to(dtype).requires_grad_()
                loss = ops.info_nce(z1, z2, float(temperature.removeprefix("tau")), eps=1e-8)
                loss.backward()
                # The released float32 loss is itself off where its exponentials cancel.
                value_rtol = 1e-3 if dtype == torch.float32 else 1e-12
                close(loss, oracle[f"{key}/loss{suffix}"], value_rtol, what=f"{key} loss")
                truth1, truth2 = oracle[f"{key}/g164"], oracle[f"{key}/g264"]
                zero = (z1.detach() == 0).all(1).numpy()  # gradients of ~1e10 by 1 / eps
                close(z1.grad[~zero], truth1[~zero], rtol, what=f"{key} g1{suffix}")
                close(z1.grad[zero], truth1[zero], rtol, what=f"{key} g1{suffix} zero rows")
                close(z2.grad, truth2, rtol, what=f"{key} g2{suffix}")


def test_info_nce_of_zero_anchors(oracle, setting):
    batch = setting.batch.user.numel()
    zero = torch.zeros(batch, setting.config.model.embedding_dim)
    loss = ops.info_nce(zero, torch.randn_like(zero), 0.5, eps=1e-8)
    close(loss, oracle["cl/allzero_z1/loss"], 1e-6)


def test_recommender_terms(oracle, setting):
    embeddings = recorded_embeddings(oracle, setting, "top3")
    _, terms = recommender_loss(
        embeddings,
        setting.batch,
        None,
        setting.config.loss,
        batch_size=setting.config.training.batch_size,
    )
    close(terms.bpr, oracle["loss/bpr_mf"], 1e-6)
    close(terms.l2, oracle["loss/bpr_emb"], 1e-6)
    close(terms.feat_reg, oracle["loss/feat_reg"], 1e-6)


def test_similarity_rows(oracle, setting):
    out = recorded_embeddings(oracle, setting, "init")
    close(similarity(setting, out.user, out.item), oracle["u_sim/ui"], 1e-6)
    for position, name in enumerate(setting.features):
        rows = similarity(setting, out.user_feature[position], out.item_feature[position])
        close(rows, oracle[f"u_sim/{name}"], 1e-6)


def test_critic_rows(oracle, setting):
    out = recorded_embeddings(oracle, setting, "top3")
    fake = [dense_similarity(rows) for rows in fake_factors(setting, out)]
    close(torch.cat(fake), oracle["gan/inputf"], 1e-6)
    uniform, config = tensor(oracle["gan/uniform"]), setting.config.critic
    own = factors(setting, out.user, out.item)
    real = dense_real_rows(own, uniform, config)
    close(real.repeat(len(setting.features), 1), oracle["gan/inputr"], 1e-6)
    zero = own._replace(left=torch.zeros_like(own.left))
    expected = nn.functional.normalize(tensor(oracle["gan/real_softmax"]), dim=1)
    close(dense_real_rows(zero, uniform, config), expected, 1e-6)


@pytest.mark.parametrize("mode", ["eval", "train_nodrop"])
def test_critic_step(oracle, setting, mode):
    critic = make_critic(oracle, setting).train(mode != "eval")
    out = recorded_embeddings(oracle, setting, "top3")
    config = setting.config.critic
    fake = fake_factors(setting, out)
    own = factors(setting, out.user, out.item)
    real = real_rows(own, tensor(oracle["gan/uniform"]), config, "dense")
    alpha = tensor(oracle["gan/alpha"])
    loss, terms = critic_loss(critic, fake, real, alpha, config.gp_weight)
    prefix = f"gan/{mode}"
    close(terms.fake, oracle[f"{prefix}/pred_fake"].mean(), 1e-5)
    close(terms.real, oracle[f"{prefix}/pred_real"].mean(), 1e-5)
    close(terms.penalty, oracle[f"{prefix}/gp"], 1e-5)
    close(loss, oracle[f"{prefix}/loss_D"], 1e-5)
    loss.backward()
    for name, parameter in critic.named_parameters():
        want = critic_array(oracle, f"{prefix}/grad", name)
        scale = gradient_scale(oracle, f"{prefix}/grad", name)
        # Two roundings of 0 differ by up to the sum of both.
        inert = critic.training and name in INERT
        close(parameter.grad, 0 * want if inert else want, 1e-5, scale=scale, what=name)
    for name, buffer in critic.named_buffers():
        close(buffer, oracle[f"{prefix}/buffers_after/{critic_name(name)}"], 1e-5, what=name)


@pytest.mark.parametrize("mode", ["eval", "train_nodrop"])
def test_generator_loss(oracle, setting, mode):
    model = make_model(oracle, setting)
    model.modality_graphs = modality_graphs(oracle, setting, "top3")
    critic = make_critic(oracle, setting).train(mode != "eval")
    out = model()
    score = critic(fake_factors(setting, out)).mean()
    config = setting.config
    loss, terms = recommender_loss(
        out, setting.batch, score, config.loss, batch_size=config.training.batch_size
    )
    prefix = f"gen/{mode}"
    close(contrastive_loss(out, setting.batch.user, config.loss), oracle[f"{prefix}/cl"], 1e-5)
    close(terms.adversarial / config.loss.g_weight, oracle[f"{prefix}/G_lossf"], 1e-5)
    close(loss, oracle[f"{prefix}/batch_loss"], 1e-5)
    loss.backward()
    without = set(oracle[f"{prefix}/params_without_grad"].tolist())
    for name, parameter in model.named_parameters():
        recorded = recorded_name(name, model.modalities)
        assert recorded not in without
        close(parameter.grad, oracle[f"{prefix}/grad/{recorded}"], 1e-5, what=name)


def check_graphs(oracle, setting: Setting, graphs: list[InteractionGraph], step: int) -> None:
    for name, graph in zip(setting.features, graphs, strict=True):
        prefix = f"train/step{step}/graph_after/{name}"
        close(graph.ui.to_dense(), recorded_graph(oracle, f"{prefix}_ui"), 1e-6, what=prefix)
        close(graph.iu.to_dense(), recorded_graph(oracle, f"{prefix}_iu"), 1e-6, what=prefix)


def test_training_steps(oracle, setting):
    """Whole steps in a row: every loss, gradient, parameter, buffer and graph."""
    config = setting.config
    model, critic = make_model(oracle, setting), make_critic(oracle, setting)
    structure = structure_learner(setting.graph, len(setting.features), config.structure)
    step = TrainingStep(model, critic, structure, config, torch.Generator())
    count = len({k.split("/")[1] for k in oracle.files if k.startswith("train/step")})
    assert count
    for number in range(count):
        prefix = f"train/step{number}"
        value_rtol, grad_rtol = (1e-5, 1e-5) if number == 0 else (1e-4, 1e-3)
        batch = Triples(*(tensor(oracle[f"{prefix}/{k}"]) for k in ("users", "pos", "neg")))
        uniform, alpha = (tensor(oracle[f"{prefix}/{k}"]) for k in ("uniform", "alpha"))
        edges = batch_edges(setting.graph.ui, batch.user)
        step.form = "dense"  # the recording's noise is for whole rows
        inputs = StepInput(batch, edges, uniform, alpha)
        losses = step(inputs, number)
        assert losses.critic is not None
        own = losses.recommender
        close(losses.critic.fake, oracle[f"{prefix}/D_out/call0"].mean(), value_rtol)
        close(losses.critic.real, oracle[f"{prefix}/D_out/call1"].mean(), value_rtol)
        close(losses.critic.penalty, oracle[f"{prefix}/gp/call0/0"], value_rtol)
        close(own.bpr, oracle[f"{prefix}/bpr/call0/0"], value_rtol)
        close(own.l2, oracle[f"{prefix}/bpr/call0/1"], value_rtol)
        close(own.feat_reg, oracle[f"{prefix}/feat_reg/call0/0"], value_rtol)
        recorded_cl = sum(
            float(oracle[f"{prefix}/cl/call{m}/0"]) for m in range(len(model.modalities))
        )
        close(own.contrastive, config.loss.cl_weight * recorded_cl, value_rtol)
        adversarial = -config.loss.g_weight * oracle[f"{prefix}/D_out/call3"].mean()
        close(own.adversarial, adversarial, value_rtol)
        for name, parameter in critic.named_parameters():
            want = critic_array(oracle, f"{prefix}/D_grad", name)
            scale = gradient_scale(oracle, f"{prefix}/D_grad", name)
            close(parameter.grad, want, grad_rtol, scale=scale, what=f"{prefix} D_grad {name}")
        for name, parameter in model.named_parameters():
            recorded = recorded_name(name, model.modalities)
            want = oracle[f"{prefix}/model_grad/{recorded}"]
            close(parameter.grad, want, grad_rtol, what=f"{prefix} model_grad {name}")
            want = oracle[f"{prefix}/model_after/{recorded}"]
            close(parameter, want, 1e-4, what=f"{prefix} model_after {name}")
        for name, value in critic.state_dict().items():
            want = critic_array(oracle, f"{prefix}/D_after", name)
            # Adam turns the rounding of an inert bias into steps of up to 1.9 lr either way, which
            # move the running means behind it, through the second layer's rows; no output in
            # train mode changes.
            inert = name in INERT or name.endswith("running_mean")
            atol = 4 * (number + 1) * config.critic.lr if inert else 0.0
            if name == "head.2.running_mean":
                atol *= 1 + np.abs(oracle[f"{prefix}/D_after/net.4.weight"]).sum(1).max()
            close(value, want, 1e-4, atol=atol, what=f"{prefix} D_after {name}")
        check_graphs(oracle, setting, model.modality_graphs, number)


def test_mask_is_the_train_graph(oracle, setting):
    view = setting.graph.ui
    position, item, _ = row_edges(view.rowptr, view.col, setting.batch.user)
    pairs = {(int(u), int(i)) for u, i in oracle["data/train_pairs"]}
    users = setting.batch.user.tolist()
    got = {(users[p], i) for p, i in zip(position.tolist(), item.tolist(), strict=True)}
    assert got == {(u, i) for u, i in pairs if u in set(users)}
