"""Serving latency for one user on tables of Gowalla's size, compared with NumPy and FAISS.

``python benchmarks/bench_serving.py [--smoke]`` exports seeded vectors, loads the export and asks
for one user at a time: medians and 99th percentiles in milliseconds, and users per second in
batches. Lists are checked first. FAISS cannot leave out the items that a user has, so it fetches
more and the caller filters; HNSW is approximate, and its recall is printed. With
``MMSSL_DATA=folder`` the items that users have are Gowalla's real interactions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import workloads  # noqa: E402
from benchmarks.harness import environment  # noqa: E402
from benchmarks.harness.record import Case, Results, Row, Timing, write  # noqa: E402
from mmssl.models.embeddings import Embeddings  # noqa: E402
from mmssl.serving import Recommender, export  # noqa: E402
from mmssl.serving.tables import ServingTables  # noqa: E402

D = 64
K = 20
BATCH = 1024
Answer = Callable[[int], list[str]]


def make_tables(name: str) -> ServingTables:
    """Return vectors with the spectrum of a trained model: a few directions dominate."""
    graph = workloads.load(name).graph
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, D + 1) ** -0.5
    user, item = (
        torch.randn(rows, D, generator=generator) * scale
        for rows in (graph.num_users, graph.num_items)
    )
    return ServingTables(
        name=name,
        model="mmssl",
        data_hash="0" * 64,
        scorer=Embeddings(user, item),
        graph=graph,
        seen="train",
        train_degree=graph.index.colptr.diff(),
    )


def numpy_peer(tables: ServingTables) -> Answer:
    """The same by hand."""
    user, item = tables.vectors.user.numpy(), tables.vectors.item.numpy()
    rowptr, col = tables.graph.index.rowptr.numpy(), tables.graph.index.col.numpy()

    def answer(index: int) -> list[str]:
        score = item @ user[index]
        score[col[rowptr[index] : rowptr[index + 1]]] = -np.inf
        best = np.argpartition(score, -K)[-K:]
        return [str(n) for n in best[np.argsort(-score[best], kind="stable")]]

    return answer


def faiss_peer(tables: ServingTables, kind: str) -> Answer | None:
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(D)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(D, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 64
    index.add(tables.vectors.item.numpy())
    rowptr, col = tables.graph.index.rowptr.numpy(), tables.graph.index.col.numpy()
    user = tables.vectors.user.numpy()

    def answer(index_of_user: int) -> list[str]:
        seen = col[rowptr[index_of_user] : rowptr[index_of_user + 1]]
        _, found = index.search(user[index_of_user][None], K + seen.size)
        kept = found[0][~np.isin(found[0], seen)]
        return [str(n) for n in kept[:K]]

    return answer


def overlap(answer: Answer, expected: Answer, users: list[int]) -> float:
    shared = [len(set(answer(u)) & set(expected(u))) / K for u in users]
    return statistics.fmean(shared)


def seconds_of(answer: Callable[[int], object], users: list[int]) -> list[float]:
    """Time single requests."""
    for user in users[:20]:
        answer(user)
    spent = []
    for user in users:
        start = time.perf_counter()
        answer(user)
        spent.append(time.perf_counter() - start)
    return spent


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="300 users, 150 items, few requests")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    requests = 30 if options.smoke else options.requests
    tables = make_tables("smoke" if options.smoke else "gowalla")
    found = environment.environment(smoke=options.smoke)
    print(environment.heading(found))
    print(f"{tables.num_users} users, {tables.num_items} items, {tables.graph.nnz} seen, D = {D}")
    with tempfile.TemporaryDirectory() as folder:
        export(tables, Path(folder) / "export", ["safetensors"])
        start = time.perf_counter()
        recommender = Recommender.load(Path(folder) / "export")
        load_seconds = time.perf_counter() - start
    print(f"load, every hash checked: {1e3 * load_seconds:.0f} ms")
    users = np.random.default_rng(0).integers(0, tables.num_users, requests).tolist()
    items = np.random.default_rng(1).integers(0, tables.num_items, requests).tolist()
    some = [str(n) for n in range(100)]

    def own(user: int) -> list[str]:
        return [one.item for one in recommender.recommend([user], K)[0]]

    answers: dict[str, Answer] = {"Recommender.recommend": own, "NumPy by hand": numpy_peer(tables)}
    for kind in ("flat", "hnsw"):
        peer = faiss_peer(tables, kind)
        if peer is not None:
            answers[f"FAISS {kind}"] = peer
    shared = {name: overlap(answer, own, users[:100]) for name, answer in answers.items()}
    for name, value in shared.items():
        if name != "FAISS hnsw" and value < 0.999:
            raise AssertionError(f"{name}: only {value:.3f} of the items are the same")
    rows = {}
    others: dict[str, Callable[[int], object]] = {
        "Recommender.score, 100 items": lambda user: recommender.score(user, some),
        "Recommender.similar_items": lambda user: recommender.similar_items(
            items[user % requests], K
        ),
    }
    print(f"{'one request':32s} {'p50 ms':>8s} {'p99 ms':>8s}  same items")
    for name, answer in {**answers, **others}.items():
        spent = seconds_of(answer, users)
        p99 = 1e3 * float(np.percentile(spent, 99))
        extra = {"p99_ms": p99}
        if name in shared:
            extra["same_items"] = shared[name]
        rows[name] = Row(Timing.of(spent), extra=extra)
        same = f"{shared[name]:.3f}" if name in shared else ""
        print(f"{name:32s} {rows[name].full.median_ms:8.3f} {p99:8.3f}  {same}")
    batch = list(range(min(BATCH, tables.num_users)))
    seconds = []
    for _ in range(2 if options.smoke else 10):
        start = time.perf_counter()
        recommender.recommend(batch, K)
        seconds.append(time.perf_counter() - start)
    rate = len(batch) / statistics.median(seconds)
    print(f"in batches of {len(batch)}: {rate:,.0f} users a second")
    rows["Recommender.recommend"].extra |= {
        "load_ms": 1e3 * load_seconds,
        "users_per_second": rate,
    }
    if options.json:
        sizes = {"users": tables.num_users, "items": tables.num_items, "seen": tables.graph.nnz}
        case = Case("one user's list", tables.name, "float32", sizes, "NumPy by hand", rows)
        case.commit = environment.commit()
        write(options.json, Results("serving", found, [case]))


if __name__ == "__main__":
    main()
