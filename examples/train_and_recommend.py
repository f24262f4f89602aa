"""Makes a small data set with two modalities, trains MMSSL on it and shows one user's list."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mmssl.config import load_config
from mmssl.data import InteractionDataset, write_dataset
from mmssl.data.splits import random_holdout
from mmssl.graph import InteractionGraph
from mmssl.serving import recommend_with_titles
from mmssl.training.run import RunDirectory
from mmssl.training.trainer import Trainer

rng = np.random.default_rng(0)
num_users, num_items = 200, 120
user_taste, item_taste = rng.integers(0, 4, num_users), rng.integers(0, 4, num_items)
chance = np.where(user_taste[:, None] == item_taste, 0.3, 0.02)
user, item = np.nonzero(rng.random((num_users, num_items)) < chance)
train, val, test = random_holdout(user, item, seed=0)
dataset = InteractionDataset(
    name="four tastes",
    num_users=num_users,
    num_items=num_items,
    train=train,
    val=val,
    test=test,
    features={
        "image": rng.normal(size=(4, 16))[item_taste].astype(np.float32),
        "text": rng.normal(size=(4, 24))[item_taste].astype(np.float32),
    },
    item_titles=tuple(f"title {index}, taste {taste}" for index, taste in enumerate(item_taste)),
)

with TemporaryDirectory() as folder:
    data = Path(folder) / "data"
    write_dataset(dataset, data)
    config = load_config("paper", settings=["training.epochs=4", "training.lr=0.005"])
    run = RunDirectory.new(Path(folder) / "run", "mmssl", data, dataset, config)
    trainer = Trainer(dataset, config, run, show_progress=False)
    run.initialize()
    metrics = trainer.fit()
    print(f"test recall@20 {metrics['test']['recall@20']:.3f}, epoch {metrics['best_epoch']}")

    graph = InteractionGraph.from_edges(*dataset.train, num_users, num_items)
    (shown,) = recommend_with_titles(dataset, graph, *run.load_embeddings(), [0], 5)
    print(f"user {shown.user}, taste {user_taste[0]}")
    for title, score in shown.items:
        print(f"  {score:.3f}  {title}")
