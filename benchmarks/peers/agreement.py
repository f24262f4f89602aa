"""Check that the package's step and the peer's agree: losses, gradients, updated parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.model import peer_name, to_peer
from benchmarks.peers.step import Batch, ReleasedStep
from benchmarks.steps import make_step
from mmssl.config import Config
from mmssl.graph import InteractionGraph
from mmssl.models.mmssl.step import StepInput, TrainingStep

# Relative. Rows, norms and BatchNorm are sums in another order, and the penalty squares their
# rounding; gradients go through all of it twice.
LOSS_TOLERANCE = 2e-5
GRAD_TOLERANCE = 2e-4
# Of the learning rate: the first step of Adam is the gradient's sign.
MOVE_TOLERANCE = 1e-2

NO_DROPOUT = {"model": {"dropout": 0.0}, "critic": {"dropout": [0.0, 0.0]}}


def make_peer(step: TrainingStep, seed: int = 0) -> ReleasedStep:
    """Return the released arithmetic with the same parameters."""
    assert step.critic is not None
    return ReleasedStep(step.model, step.critic, step.config, seed)


def as_batch(inputs: StepInput, num_items: int) -> Batch:
    """Return the package's draws for the peer; noise on whole rows only if the package draws it."""
    uniform = inputs.uniform
    whole = uniform is not None and uniform.shape == (len(inputs.batch.user), num_items)
    return Batch(*(ids.tolist() for ids in inputs.batch), uniform if whole else None, inputs.alpha)


def check_agreement(
    graph: InteractionGraph, features: dict[str, Tensor], config: Config
) -> dict[str, float]:
    """Run one step of each from equal parameters with equal draws, without dropout.

    Returns:
        The worst deviations of losses, gradients and of the parameters moved, each relative.

    Raises:
        AssertionError: one is beyond its tolerance.
    """
    config = config.replace(NO_DROPOUT, source="agreement")
    step = make_step(graph, features, config)
    peer = make_peer(step)
    assert step.critic is not None
    inputs = step.draw()
    losses = dict(zip(step.loss_names(), step(inputs, 0).to_vector().tolist(), strict=True))
    batch = as_batch(inputs, graph.num_items)
    terms = peer.train_critic(batch)
    critic_pairs = [
        (name, to_peer(name, p.grad), to_peer(name, p))
        for name, p in step.critic.named_parameters()
        if p.grad is not None
    ]
    worst = {"loss": 0.0, "gradient": 0.0, "move": 0.0}
    largest = max(float(grad.abs().max()) for _, grad, _ in critic_pairs)
    for name, grad, value in critic_pairs:
        theirs = peer.critic.layers.get_parameter(peer_name(name))
        # BatchNorm cancels the biases before it, and only rounding is left in their gradients.
        scale = largest if name.endswith("bias") else 0.0
        _compare(worst, f"critic.{name}", grad, value, theirs, config.critic.lr, scale)
    terms |= peer.train_recommender(batch, 0)
    for name, term in terms.items():
        error = abs(losses[name] - float(term)) / max(abs(float(term)), 1e-12)
        worst["loss"] = max(worst["loss"], error)
        assert error <= LOSS_TOLERANCE, f"{name}: {losses[name]} against the peer's {float(term)}"
    for name, p in step.model.named_parameters():
        theirs = peer.model.get_parameter(name.replace("attention.output", "head_mix"))
        assert p.grad is not None, f"{name}: no gradient"
        _compare(worst, name, p.grad, p.detach(), theirs, config.training.lr, 0.0)
    return worst


def _compare(
    worst: dict[str, float],
    name: str,
    grad: Tensor,
    value: Tensor,
    theirs: torch.nn.Parameter,
    lr: float,
    scale: float,
) -> None:
    """Raise ``worst`` to the deviations of one parameter.

    A gradient is judged by its largest entry, or by ``scale`` if that is larger.
    """
    assert theirs.grad is not None
    scale = max(float(theirs.grad.abs().max()), scale, 1e-30)
    error = float((grad - theirs.grad).abs().max()) / scale
    clear = theirs.grad.abs() > 100 * GRAD_TOLERANCE * scale  # elsewhere the sign may be rounding
    moved = float(((value - theirs.detach()).abs() * clear).max()) / lr
    worst["gradient"], worst["move"] = max(worst["gradient"], error), max(worst["move"], moved)
    assert error <= GRAD_TOLERANCE, f"{name}: gradients differ by {error:.1e} of the largest"
    assert moved <= MOVE_TOLERANCE, f"{name}: moved apart by {moved:.1e} of the learning rate"
