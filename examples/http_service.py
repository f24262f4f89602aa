"""Answer requests for recommendations over HTTP, with the standard library alone.

``python examples/http_service.py export/mine --port 8000 --workers 2`` serves a run or an export:
``GET /recommend?user=42&k=10`` returns the items of a user as JSON. Without a directory it serves
random vectors, asks itself for one list and ends.
"""

import argparse
import json
import multiprocessing
import re
import signal
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import torch

from mmssl import InteractionGraph
from mmssl.errors import InputError
from mmssl.models.embeddings import Embeddings
from mmssl.serving import Recommender
from mmssl.serving.tables import ServingTables


class Service(ThreadingHTTPServer):
    """Answers every connection in a thread of its own; the recommender is shared."""

    def __init__(self, recommender: Recommender, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.recommender = recommender

    def handle_error(self, *request: object) -> None:
        """Print the error of a request, unless it is that the client has gone away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*request)


class Handler(BaseHTTPRequestHandler):
    """Reads the parameters, ranks, writes JSON."""

    protocol_version = "HTTP/1.1"  # connections stay open between requests
    timeout = 60  # seconds without a request after which a connection is closed
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body leave in one packet

    def do_GET(self) -> None:
        """Answer a request."""
        url = urlsplit(self.path)
        if url.path != "/recommend":
            return self.answer(404, {"error": f"expected /recommend, got {url.path}"})
        asked = {"k": "10", **{name: values[-1] for name, values in parse_qs(url.query).items()}}
        if "user" not in asked:
            return self.answer(400, {"error": "user: expected an id, got none"})
        if not re.fullmatch("[1-9][0-9]{0,3}", asked["k"]):
            return self.answer(400, {"error": "k: expected a number from 1 to 9999"})
        try:
            (items,) = self.server.recommender.recommend([asked["user"]], k=int(asked["k"]))
        except InputError:  # whose message suggests ids of other users, which are theirs
            return self.answer(400, {"error": f"user: unknown id {asked['user']!r:.60}"})
        self.answer(200, {"items": [item._asdict() for item in items]})

    def answer(self, status: int, content: dict) -> None:
        """Write a reply."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet; a service would write its log here."""


def random_recommender() -> Recommender:
    """Random vectors of 100 users and 50 items."""
    graph = InteractionGraph.from_edges(list(range(100)), [n % 50 for n in range(100)], 100, 50)
    return Recommender(
        ServingTables(
            name="random",
            model="lightgcn",
            data_hash="0" * 64,
            scorer=Embeddings(torch.randn(100, 64), torch.randn(50, 64)),
            graph=graph,
            seen="train",
            train_degree=graph.index.colptr.diff(),
        )
    )


def main() -> None:
    """Serve, or show two requests."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path", nargs="?", help="directory of a run or an export")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, which is printed")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the port")
    options = parser.parse_args()

    torch.set_num_threads(1)  # requests run side by side; one of them needs no second thread
    recommender = Recommender.load(options.path) if options.path else random_recommender()
    service = Service(recommender, options.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # ends the workers as well
    # Forked after loading: the workers share the port and the memory of the vectors.
    fork = multiprocessing.get_context("fork")
    workers = [
        fork.Process(target=service.serve_forever, daemon=True) for _ in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    address = f"http://127.0.0.1:{service.server_port}"
    print(f"{address}/recommend?user=ID&k=10", flush=True)
    if options.path:
        try:
            for worker in workers:
                worker.join()
        except KeyboardInterrupt:
            pass
        return
    with urllib.request.urlopen(f"{address}/recommend?user=42&k=3") as reply:
        print(reply.read().decode())
    try:
        urllib.request.urlopen(f"{address}/recommend?user=none")
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode())


if __name__ == "__main__":
    main()
