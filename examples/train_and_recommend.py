"""Generate a small data set with two modalities, train MMSSL on it and show one user's list."""

from tempfile import TemporaryDirectory

import numpy as np

import mmssl
from mmssl.data import InteractionDataset
from mmssl.data.splits import random_holdout

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
    run = mmssl.train(
        dataset, out=f"{folder}/run", epochs=4, progress=False, training={"lr": 0.005}
    )
    metrics = run.metrics
    print(f"test recall@20 {metrics['test']['recall@20']:.3f}, epoch {metrics['best_epoch']}")

    print(f"user 0, taste {user_taste[0]}")
    for item in mmssl.load(run.path).recommend([0], k=5)[0]:
        print(f"  {item.score:.3f}  {item.title}")
