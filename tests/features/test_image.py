"""`mmssl features image` end to end, with a small encoder."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmssl.cli import main
from mmssl.config import read_toml
from mmssl.data import read_dataset
from mmssl.errors import InputError
from mmssl.features.image import ImageEncoder, extract_images
from mmssl.features.output import Output
from mmssl.features.pictures import Preprocess, read_picture

pytest.importorskip("PIL.Image", reason="pictures need mmssl[image]")


@pytest.fixture
def command(shop, pictures, encoder_file) -> list[str]:
    options = ["--encoder", "torchscript", "--weights", str(encoder_file), "--size", "32"]
    return ["features", "image", str(shop), "--images", str(pictures), *options]


def features(shop, name: str = "image") -> np.ndarray:
    return np.load(shop / f"{name}_feat.npy", allow_pickle=False)


def test_rows_are_the_output_of_the_encoder(shop, pictures, encoder_file, command, capsys):
    assert main([*command, "--dtype", "float32"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{shop}/image_feat.npy: 50 items, 8 dimensions, float32, by torchscript",
        "  10 items without picture (20.0%) have zero rows: i40, i41, i42, i43, i44, ...",
    ]
    assert err == ""
    preprocess = Preprocess(size=32, resize=36)
    pixels = torch.from_numpy(read_picture(str(pictures / "i3.JPEG"), preprocess)).double() / 255
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (preprocess.mean, preprocess.std))
    module = torch.jit.load(str(encoder_file)).double()
    expected = module(((pixels - mean) / std)[None]).mean((2, 3))[0].detach().numpy()
    rows = features(shop)
    assert np.allclose(rows[3], expected, atol=1e-5)
    assert not rows[40:].any()
    record = read_toml(shop / "image_feat.toml")
    assert record["encoder"]["preprocess"]["resize"] == 36
    assert len(record["encoder"]["weights_sha256"]) == 64 and record["source"] == "pictures/"


def test_similar_pictures_have_similar_rows(shop, command):
    assert main([*command, "--normalize", "zscore", "--pca", "3"]) == 0
    dataset = read_dataset(shop)
    rows = dataset.features["image"]
    assert dataset.masks["image"].tolist() == [True] * 40 + [False] * 10
    red, blue = rows[:20, 0], rows[20:40, 0]
    assert red.max() < blue.min() or blue.max() < red.min()


def test_workers_and_reruns_produce_the_same_bits(shop, command):
    def run(name, *options):
        assert main([*command, "--name", name, *options]) == 0
        return features(shop, name).tobytes()

    first = run("a", "--workers", "0", "--batch-size", "7")
    assert first == run("b", "--workers", "0", "--batch-size", "7")
    assert first == run("c", "--workers", "3", "--batch-size", "7")


def test_a_table_of_paths(shop, pictures, command, tmp_path, capsys):
    table = tmp_path / "paths.tsv"
    table.write_text("id\timage\ni5\tpictures/i0.jpg\ni6\tpictures/none.jpg\ni7\t\n")
    del command[3:5]
    assert main([*command, "--from", str(table)]) == 0
    out = capsys.readouterr().out
    assert f"    {tmp_path}/pictures/none.jpg: no such file" in out
    assert np.flatnonzero(features(shop).any(1)).tolist() == [5]
    table.write_text("id\tfile\ni5\ti0.jpg\n")
    command += ["--from", str(table), "--images", str(pictures), "--column", "file", "--force"]
    assert main(command) == 0


def test_broken_pictures_are_named_and_missing(shop, pictures, command, untouched, capsys):
    (pictures / "i2.webp").write_bytes(b"RIFF")
    (pictures / "i5.png").write_bytes((pictures / "i5.png").read_bytes()[:200])
    assert main([*command, "--strict"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {pictures}/i2.webp: not a picture") and err.count("\n") == 1
    assert untouched()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "12 items without picture (24.0%) have zero rows: i2, i5, i40" in out
    assert "2 of these have a picture that can't be read:" in out
    assert f"{pictures}/i5.png: damaged: " in out
    assert np.flatnonzero(~read_dataset(shop).masks["image"]).tolist() == [2, 5, *range(40, 50)]


def test_no_picture_can_be_read(shop, pictures, command, untouched, capsys):
    for path in pictures.iterdir():
        path.write_bytes(b"")
    assert main(command) == 2
    assert (
        "not a picture in a supported format (none of the 40 pictures can be read)"
        in capsys.readouterr().err
    )
    assert untouched()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "none.pt"], ["none.pt", "No such file"]),
        (["--model", "resnet18"], ["torchscript", "without --model"]),
        (["--encoder", "timm"], ["timm", "--model"]),
        (["--images", "nowhere"], ["nowhere", "No such file"]),
        (["--column", "path"], ["--column", "--from"]),
        (["--size", "0"], ["--size", "0"]),
        (["--size", "32", "--resize", "16"], ["--resize", "16"]),
        (["--std", "1", "0", "1"], ["std"]),
        (["--workers", "-1"], ["--workers", "-1"]),
        (["--batch-size", "0"], ["--batch-size", "0"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_options(command, untouched, capsys, options, words):
    assert main([*command, *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, (word, err)
    assert untouched()


class Payload:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_no_encoder(command, untouched, tmp_path, capsys):
    trap, bad = tmp_path / "executed", tmp_path / "bad.pt"
    for save in (
        lambda: bad.write_bytes(pickle.dumps(Payload(trap))),
        lambda: torch.save(Payload(trap), bad),
    ):
        save()
        assert main([*command, "--weights", str(bad)]) == 2
        err = capsys.readouterr().err
        assert "expected a TorchScript module" in err and err.count("\n") == 1
    assert untouched() and not trap.exists()


class Wrong(nn.Module):
    def forward(self, pixels):
        return pixels.flatten()


def test_any_module_from_python(shop, pictures):
    paths = [str(pictures / f"i{i}.jpg") if i % 4 == 0 and i < 40 else "" for i in range(50)]
    output = Output(folder=shop, name="flat", dtype="float32")
    encoder = ImageEncoder(
        module=nn.Flatten(),
        preprocess=Preprocess(size=2, resize=2, mean=(0, 0, 0), std=(1, 1, 1)),
        record={"name": "flat"},
    )
    extracted = extract_images(paths, encoder, output, workers=0)
    assert extracted.written.shape == (50, 12) and extracted.broken == {}
    expected = read_picture(paths[8], encoder.preprocess).reshape(-1) / 255
    assert np.allclose(features(shop, "flat")[8], expected, atol=1e-6)
    wrong = ImageEncoder(module=Wrong(), preprocess=encoder.preprocess)
    with pytest.raises(InputError, match=r"encoder: expected output \(10, d\) .* got \(120,\)"):
        extract_images(paths, wrong, Output(folder=shop, name="wrong"), workers=0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_leaves_nothing(shop, command, pictures, untouched, number):
    """Like Ctrl-C and `timeout`, signal the whole process group, including workers."""
    os.remove(pictures / "i39.JPEG")
    os.mkfifo(pictures / "i39.JPEG")  # reading it blocks, so the command is still running
    process = subprocess.Popen(
        [sys.executable, "-m", "mmssl", *command, "--batch-size", "1", "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Background jobs of a shell inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        pipe = None
        while pipe is None or not list(shop.glob(".features-*/raw.npy")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
            if pipe is None:
                with suppress(OSError):  # until the worker has opened it for reading
                    pipe = os.open(pictures / "i39.JPEG", os.O_WRONLY | os.O_NONBLOCK)
        os.killpg(process.pid, number)
        os.close(pipe)  # the worker reads to the end, and exits
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, (out, err)
    assert err == ("interrupted\n" if number == signal.SIGINT else "") and out == ""
    assert untouched()
