"""Features that are mapped into memory as float16 give what float32 in memory gives.

A block holds a few numbers here, so that every loop over blocks runs several times.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.config import load_config
from mmssl.data import InteractionDataset, read_dataset, write_dataset
from mmssl.data.summary import summarize
from mmssl.models import item_graph, linear
from mmssl.models.item_graph import nearest_neighbors
from mmssl.models.linear import Linear, project
from mmssl.models.registry import model_specs
from mmssl.training.task import create_task
from tests.ops.kernels import needs_cpu_kernel

ROOT = Path(__file__).resolve().parents[2]
ENTRIES = [pytest.param(s, id="-".join((s.name, *s.variants[:1]))) for s in model_specs()]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(linear, "BLOCK_NUMBERS", 40)
    monkeypatch.setattr(item_graph, "RESIDENT", 200)


@pytest.fixture(scope="module")
def folder(tiny_dataset, tmp_path_factory) -> Path:
    """The tiny data set on disk, its features in float16."""
    path = tmp_path_factory.mktemp("half") / "tiny"
    half = {name: rows.astype(np.float16) for name, rows in tiny_dataset.features.items()}
    write_dataset(dataclasses.replace(tiny_dataset, features=half), path)
    return path


@pytest.fixture
def read(folder) -> InteractionDataset:
    return read_dataset(folder)


@pytest.fixture
def mapped(folder, monkeypatch) -> InteractionDataset:
    monkeypatch.setattr("mmssl.data.npy.MAPPED_FROM", 1)
    dataset = read_dataset(folder)
    for rows in dataset.features.values():
        assert isinstance(rows, np.memmap) and rows.dtype == np.float16
    return dataset


def test_hashes_and_statistics_are_the_same(read, mapped):
    assert all(rows.dtype == np.float32 for rows in read.features.values())
    assert read.content_hash() == mapped.content_hash()
    assert summarize(read) == summarize(mapped)


@pytest.mark.parametrize("spec", ENTRIES)
def test_models_learn_the_same(read, mapped, spec, small_blocks, monkeypatch):
    def trained(dataset: InteractionDataset) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        task = create_task(spec.name, dataset, load_config(*spec.variants[:1]))
        if spec.schedule is not None:
            task.start_epoch(0, 0)
            for number in range(min(3, task.steps_per_epoch)):
                task.step(number)
        return task.embed().tensors()

    found = trained(mapped)
    monkeypatch.undo()  # in one block
    truth = trained(read)
    for name, table in found.items():
        torch.testing.assert_close(table, truth[name], rtol=1e-5, atol=1e-6)


def test_projection_against_float64(small_blocks):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(53, 7, generator=generator).half()
    grad = torch.randn(53, 4, generator=generator)
    layer = Linear(7, 4)
    out = project(layer, raw)
    out.backward(grad)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    torch.testing.assert_close(out.double(), raw.double() @ weight.T + bias, rtol=1e-6, atol=1e-6)
    truth = grad.double().T @ raw.double()
    torch.testing.assert_close(layer.weight.grad.double(), truth, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, grad.sum(0))
    some = torch.tensor([3, 50, 3])
    assert torch.equal(project(layer, raw, some), layer(raw[some].float()))


@needs_cpu_kernel  # the products of torch round equal rows differently at the end of a block
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("k", [1, 6, 100])
def test_neighbors_are_the_same_in_blocks(k, centered, monkeypatch):
    rng = np.random.default_rng(k)
    rows = rng.normal(size=(70, 5))
    rows[[0, 9, 69]] = 0
    rows[20:30] = rows[5]  # equal cosines across blocks rank by smaller id
    features = torch.from_numpy(rows.astype(np.float16))
    whole = nearest_neighbors(features.float(), k, centered=centered)
    monkeypatch.setattr(linear, "BLOCK_NUMBERS", 40)
    monkeypatch.setattr(item_graph, "RESIDENT", 200)  # 10 items of a time
    found = nearest_neighbors(features, k, centered=centered)
    assert all(map(torch.equal, found, whole))


MEASURED = """
import threading, sys, time
from pathlib import Path
import torch
from mmssl.data.npy import read_features
import mmssl.data.npy
from mmssl.models.linear import Linear, project
mmssl.data.npy.MAPPED_FROM = 1

def anonymous_mb():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

def run(path):
    rows = torch.from_numpy(read_features(path))
    assert rows.dtype == torch.float16
    layer = Linear(rows.shape[1], 8)
    project(layer, rows).sum().backward()

run(Path(sys.argv[2]))  # starts threads and loads libraries
before, highest, done = anonymous_mb(), 0.0, threading.Event()
def watch():
    global highest
    while not done.is_set():
        highest = max(highest, anonymous_mb())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
run(Path(sys.argv[1]))
done.set()
watcher.join()
print(highest - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_no_copy_of_mapped_features_is_made(tmp_path):
    """256 MB of float16, 512 MB in float32: anonymous memory grows by a few blocks of 64 MB."""
    big, small = tmp_path / "big_feat.npy", tmp_path / "small_feat.npy"
    shape = (1 << 20, 128)
    rows = np.lib.format.open_memmap(big, mode="w+", dtype=np.float16, shape=shape)
    rows[:, 0] = 1
    rows.flush()
    np.save(small, np.ones((100, 128), np.float16))
    command = [sys.executable, "-c", MEASURED, str(big), str(small)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300
