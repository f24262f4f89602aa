"""What the example of a service over HTTP answers, apart from its demonstration."""

from __future__ import annotations

import json
import runpy
import socket
import struct
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "http_service.py"


@pytest.fixture(scope="module")
def address():
    names = runpy.run_path(str(EXAMPLE))
    service = names["Service"](names["random_recommender"](), 0)
    thread = threading.Thread(target=service.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{service.server_port}"
    service.shutdown()
    thread.join()
    service.server_close()


def ask(url: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(url) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_list(address):
    status, reply = ask(f"{address}/recommend?user=42&k=3")
    assert status == 200 and len(reply["items"]) == 3


def test_a_client_that_goes_away_is_no_error(address, capfd):
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset
        client.sendall(b"GET /recom")
    assert ask(f"{address}/recommend?user=1")[0] == 200  # it is still there
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("user=stranger", "user: unknown id 'stranger'"),
        ("user=999", "user: unknown id '999'"),  # nothing on other ids, nor on their number
        ("user=" + "x" * 1000, "user: unknown id '" + "x" * 59),
        ("", "user: expected an id, got none"),
        ("user=42&k=0", "k: expected a number from 1 to 9999"),
        ("user=42&k=1e3", "k: expected a number from 1 to 9999"),
    ],
)
def test_a_bad_request_is_told_what_it_asked_for_only(address, query, error):
    assert ask(f"{address}/recommend?{query}") == (400, {"error": error})
