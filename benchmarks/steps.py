"""The package's training step as the benchmarks run it: made from a graph, seen by the profiler."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.harness.phases import Named
from mmssl import losses
from mmssl.config import Config
from mmssl.graph import InteractionGraph
from mmssl.models import critic as critic_module
from mmssl.models.critic import Critic
from mmssl.models.mmssl import MMSSL
from mmssl.models.structure import structure_learner
from mmssl.training import step as step_module
from mmssl.training.step import TrainingStep


def make_step(
    graph: InteractionGraph, features: dict[str, Tensor], config: Config, seed: int = 0
) -> TrainingStep:
    """A fresh model, critic and structure with their optimizers, seeded, on the graph's device."""
    device = graph.device
    torch.manual_seed(seed)
    model = MMSSL(graph, features, config.model).to(device)
    critic = Critic(graph.num_items, config.critic).to(device)
    structure = structure_learner(graph, len(features), config.structure)
    generator = torch.Generator(device).manual_seed(seed)
    return TrainingStep(model, critic, structure, config, generator)


def named_functions(step: TrainingStep) -> list[Named]:
    """Parts of a step to profile in addition to the ranges that the step itself has."""
    return [
        Named(step_module, "similarity_rows", "similarity_rows"),
        Named(step_module, "real_rows", "real_rows"),
        Named(critic_module, "gradient_penalty", "gradient_penalty"),
        Named(step.critic, "forward", "critic_forward"),
        Named(losses, "contrastive_loss", "info_nce"),
    ]
