"""The package's training step as the benchmarks run it, with profiler ranges."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness.phases import Named
from mmssl.config import Config
from mmssl.graph import InteractionGraph
from mmssl.models.mmssl import loss as loss_module
from mmssl.models.mmssl import step as step_module
from mmssl.models.mmssl.step import TrainingStep, build_step


def make_step(
    graph: InteractionGraph, features: dict[str, Tensor], config: Config, seed: int = 0
) -> TrainingStep:
    """Build what the trainer runs, with its own seed, on the graph's device."""
    torch.manual_seed(seed)
    seeded = config.replace({"training": {"seed": seed}}, source="benchmark")
    return build_step(graph, features, seeded)


def named_functions(step: TrainingStep) -> list[Named]:
    """Parts of a step to profile in addition to the ranges that the step itself has.

    The gradient penalty is computed with the critic's loss, in ``critic_forward``.
    """
    return [
        Named(step_module, "similarity_rows", "similarity_rows"),
        Named(step_module, "real_rows", "real_rows"),
        Named(step.critic, "forward", "critic_forward"),
        Named(loss_module, "contrastive_loss", "info_nce"),
    ]
