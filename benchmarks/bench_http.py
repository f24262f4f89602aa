"""Latency of recommendations over HTTP under load: ``examples/http_service.py`` on this machine.

``python benchmarks/bench_http.py [--smoke]`` exports seeded vectors of Gowalla's size, starts the
service and lets clients ask for lists of 20, each over one open connection and each for the next
list as soon as it has the last one. Prints requests per second and the median and 99th percentile
of the time that a client waits. Service and clients share the cores of the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.bench_serving import K, make_tables  # noqa: E402
from benchmarks.harness import environment  # noqa: E402
from mmssl.serving import Recommender, export  # noqa: E402

SERVICE = ROOT / "examples" / "http_service.py"
WORKERS = (1, 2)
CLIENTS = (1, 2, 4, 8, 16)
WARM_UP = 20


def ask(port: int, users: list[int], seed: int, requests: int, results: object) -> None:
    """Ask for the lists of random users; report begin, end and the seconds of each request."""
    chosen = random.Random(seed).choices(users, k=requests + WARM_UP)
    connection = HTTPConnection("127.0.0.1", port)
    spent = []
    for number, user in enumerate(chosen):
        if number == WARM_UP:
            begin = time.perf_counter()
        start = time.perf_counter()
        connection.request("GET", f"/recommend?user={user}&k={K}")
        reply = connection.getresponse()
        body = reply.read()
        spent.append(time.perf_counter() - start)
        if reply.status != 200:
            raise AssertionError(f"status {reply.status}: {body!r}")
    results.put((begin, time.perf_counter(), spent[WARM_UP:]))  # type: ignore[attr-defined]


def load(port: int, users: list[int], clients: int, requests: int) -> tuple[float, np.ndarray]:
    """Return requests per second and the seconds of all requests."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=ask, args=(port, users, seed, requests // clients, results))
        for seed in range(clients)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    spent = np.concatenate([one[2] for one in found])
    return spent.size / (max(one[1] for one in found) - min(one[0] for one in found)), spent


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="300 users, 150 items, few requests")
    parser.add_argument("--requests", type=int, default=4000, help="of all clients together")
    options = parser.parse_args(argv)
    tables = make_tables("smoke" if options.smoke else "gowalla")
    users = list(range(tables.num_users))
    requests = 60 if options.smoke else options.requests
    print(environment.heading(environment.environment(smoke=options.smoke)))
    print(f"{tables.num_users} users, {tables.num_items} items, lists of {K}")
    print(f"{'workers':>8s} {'clients':>8s} {'requests/s':>11s} {'p50 ms':>8s} {'p99 ms':>8s}")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "export"
        export(tables, directory, ["safetensors"])
        expected = Recommender.load(directory).recommend([7], K)[0]
        for workers in WORKERS[:1] if options.smoke else WORKERS:
            command = [sys.executable, SERVICE, directory, "--workers", str(workers)]
            own = {**os.environ, "PYTHONPATH": str(ROOT)}
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) as service:
                try:
                    assert service.stdout is not None
                    port = urlsplit(service.stdout.readline()).port
                    assert port is not None
                    address = f"http://127.0.0.1:{port}/recommend?user=7&k={K}"
                    with urllib.request.urlopen(address) as reply:
                        items = [one["item"] for one in json.load(reply)["items"]]
                    if items != [one.item for one in expected]:
                        raise AssertionError("the service answers other lists")
                    for clients in CLIENTS[:2] if options.smoke else CLIENTS:
                        rate, spent = load(port, users, clients, requests)
                        p50, p99 = 1e3 * np.percentile(spent, [50, 99])
                        print(f"{workers:8d} {clients:8d} {rate:11,.0f} {p50:8.2f} {p99:8.2f}")
                finally:
                    service.terminate()


if __name__ == "__main__":
    main()
