"""A model that is loaded before its workers are forked, as in a pool or a preloading server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmssl.cli import main
from tests.conftest import make_dataset

POOL = """
import concurrent.futures, multiprocessing, os, sys
from mmssl.serving import Recommender

recommender = Recommender.load(sys.argv[1])
users = [recommender.users.id(index) for index in range(recommender.users.count)]
parts = [users[::2], users[1::2]]

def answer(part):
    return recommender.recommend(part, k=20), recommender.similar_items("3"), os.getpid()

# The fork comes before or after the first request; the pool once more after others were used.
for used in (False, True):
    if used:
        expected = [answer(part)[:2] for part in parts]
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        got = pool.map_async(answer, parts).get(timeout=60)
        assert os.getpid() not in [one[2] for one in got]
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        again = list(executor.map(answer, parts, timeout=60))
    for lists in (got, again):
        assert not used or [one[:2] for one in lists] == expected
import torch
assert torch.get_num_threads() == 2  # the parent keeps its threads
print("done")
"""

TORCH_AND_NEW_THREADS = """
import os, threading, torch
import mmssl.ops

def work():
    x = torch.ones(600, 600, requires_grad=True)
    return float((x @ x).tanh().sum().backward() or x.grad.sum() + torch.rand(500_000).sort()[0][0])

assert torch.get_num_threads() == 2
work()
child = os.fork()
if child == 0:
    assert torch.get_num_threads() == 1
    work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.get_num_threads() == 2
print("done")
"""


def run(script: str, *arguments: str | Path) -> None:
    """Run a script with two threads; a child that hangs ends it after a while."""
    done = subprocess.run(
        ["timeout", "--kill-after=5", "200", sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """An export that is large enough for several threads."""
    import mmssl

    folder = tmp_path_factory.mktemp("fork")
    options = {"out": folder / "run", "device": "cpu", "progress": False}
    mmssl.train(make_dataset(2000, 1500), "popularity", **options)
    assert main(["export", str(folder / "run"), "--to", str(folder / "export")]) == 0
    return folder / "export"


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_pools_that_are_forked_after_load(large, backend, monkeypatch):
    monkeypatch.setenv("MMSSL_OPS", backend)
    run(POOL, large)


def test_torch_itself_in_a_forked_child():
    run(TORCH_AND_NEW_THREADS)


IMAGES = """
import sys, torch
from pathlib import Path
from PIL import Image
from mmssl import ops
from mmssl.features.image import ImageEncoder, extract_images
from mmssl.features.output import Output
from mmssl.features.pictures import Preprocess

folder = Path(sys.argv[1])
paths = [str(folder / f"{n}.png") for n in range(8)]
for n, path in enumerate(paths):
    Image.new("RGB", (40, 40), (30 * n, 0, 0)).save(path)
torch.randn(900, 900) @ torch.randn(900, 900)
ops.info_nce(torch.randn(700, 64), torch.randn(700, 64), 0.2)
encoder = ImageEncoder(module=torch.nn.Conv2d(3, 4, 8), preprocess=Preprocess(size=32, resize=32))
output = Output(folder=folder, name="image")
extract_images(paths, encoder, output, batch_size=2, workers=2, show_progress=False)
print("done")
"""


def test_workers_that_decode_pictures(tmp_path):
    pytest.importorskip("PIL")
    run(IMAGES, tmp_path)
