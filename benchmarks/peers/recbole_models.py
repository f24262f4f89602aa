"""LightGCN and BPR in RecBole: its dataset, its sampler, its trainer.

Legend: U users, I items, D embedding dim, n train edges, B batch.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.sampler import Sampler
from recbole.trainer import Trainer
from recbole.utils import get_model

Array = npt.NDArray[Any]


class RecBole:
    """A model of RecBole with our settings, started from given tables.

    Args:
        problem: As for LightGCNPeer.
    """

    model_name: ClassVar[str]
    tables: ClassVar[tuple[str, str]] = ("user_embedding", "item_embedding")

    def __init__(self, problem: Mapping[str, Array]) -> None:
        sys.argv = sys.argv[:1]  # it reads them as settings
        self.folder = tempfile.TemporaryDirectory()
        os.chdir(self.folder.name)  # where it writes its data, logs and checkpoints
        users, (items, width) = len(problem["user_table"]), problem["item_table"].shape
        write_atomic_files(Path("data", "problem"), problem["user"], problem["item"], users, items)
        config = Config(self.model_name, "problem", config_dict=self.settings(problem, width))
        dataset = create_dataset(config)
        dataset._change_feat_format()  # as its split into train, validation and test ends
        sampler = Sampler(["train"], [dataset], distribution="uniform").set_phase("train")
        self.loader = TrainDataLoader(config, dataset, sampler, shuffle=True)
        # Its ids: 0 is padding, the others by order of appearance in the files.
        self.ids = [
            np.array([dataset.field2token_id[f"{side}_id"][str(n)] for n in range(count)])
            for side, count in (("user", users), ("item", items))
        ]
        model = get_model(self.model_name)(config, dataset)
        with torch.no_grad():
            for name, side, ids in zip(self.tables, ("user", "item"), self.ids, strict=True):
                table = torch.from_numpy(problem[f"{side}_table"])
                getattr(model, name).weight[torch.from_numpy(ids)] = table
        self.trainer, self.batches = Trainer(config, model), problem["batches"]

    def settings(self, problem: Mapping[str, Array], width: int) -> dict[str, Any]:
        """Return what replaces its defaults. It has no L2 in BPR; in LightGCN squares, as ours."""
        return {
            "data_path": "data", "use_gpu": False, "seed": 0, "reproducibility": False,
            "show_progress": False, "embedding_size": width, "n_layers": int(problem["layers"]),
            "reg_weight": float(problem["reg"]), "require_pow": True,
            "learning_rate": float(problem["lr"]), "train_batch_size": int(problem["batch_size"]),
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "dynamic": False},
            "load_col": {"inter": ["user_id", "item_id"], "user": ["user_id"], "item": ["item_id"]},
        }  # fmt: skip

    def check(self) -> list[float]:
        """Train on the given batches by its loss and its optimizer; return the loss of each."""
        return [self.step(*batch) for batch in self.batches]

    def step(self, users: Array, pos: Array, neg: Array) -> float:
        """Train on (B,) ids of ours."""
        user_ids, item_ids = self.ids
        named = {"user_id": user_ids[users], "item_id": item_ids[pos], "neg_item_id": item_ids[neg]}
        batch = Interaction({name: torch.from_numpy(ids) for name, ids in named.items()})
        model, optimizer = self.trainer.model, self.trainer.optimizer
        model.train()
        optimizer.zero_grad()
        loss = model.calculate_loss(batch)
        loss.backward()
        optimizer.step()
        return float(loss)

    def run(self) -> None:
        """Train an epoch."""
        self.trainer._train_epoch(self.loader, 0, show_progress=False)


class LightGCN(RecBole):
    """See :class:`RecBole`."""

    model_name = "LightGCN"


class BPR(RecBole):
    """See :class:`RecBole`."""

    model_name = "BPR"


def write_atomic_files(path: Path, user: Array, item: Array, users: int, items: int) -> None:
    """Write the files that RecBole reads, with users and items without an edge as well."""
    path.mkdir(parents=True)
    columns = {"user_id:token": np.arange(users), "item_id:token": np.arange(items)}
    for side, header in (("user", "user_id:token"), ("item", "item_id:token")):
        np.savetxt(path / f"{path.name}.{side}", columns[header], "%d", header=header, comments="")
    np.savetxt(
        path / f"{path.name}.inter", np.stack([user, item], 1), "%d", "\t",
        header="\t".join(columns), comments="",
    )  # fmt: skip
