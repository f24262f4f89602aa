"""Encoders of timm, torchvision and open_clip, if installed, and weights files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmssl.cli import main
from mmssl.config import read_toml
from mmssl.errors import InputError
from mmssl.features.encoders import load_encoder
from mmssl.features.pictures import read_picture
from mmssl.features.weights import module_digest, read_weights

HEAVY = "is not a test dependency, since it requires its own torch build"


def test_weights_files(tmp_path):
    module = nn.Linear(3, 2)
    state = module.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "b.pt"
    )
    for name in ("a.safetensors", "a.pt", "b.pt"):
        read = read_weights(tmp_path / name)
        assert set(read) == {"weight", "bias"} and torch.equal(read["weight"], module.weight)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.safetensors", b"", "expected a safetensors file"),
        ("x.safetensors", b"\xff" * 100, "expected a safetensors file"),
        ("x.pt", b"", "expected weights"),
        ("x.pt", b"\x80\x02cos\nsystem\nU\x04trueR.", "never unpickled"),
        ("x.pt", None, "No such file"),
    ],
)
def test_bad_weights_files(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    for odd in (torch.ones(3), {"epoch": 3}, {}):
        torch.save(odd, tmp_path / "odd.pt")
        with pytest.raises(InputError, match="expected named tensors"):
            read_weights(tmp_path / "odd.pt")


def test_digest_names_the_weights():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = module_digest(module)
    assert first == module_digest(module)
    module[0].weight.data[1, 2] += 1e-6
    assert module_digest(module) != first


def test_missing_libraries_are_named(monkeypatch):
    for name in ("timm", "torchvision", "open_clip"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(InputError, match=f"--encoder {name}: expected .*pip install {name}"):
            load_encoder(name, "resnet18/tag", "random")
    with pytest.raises(InputError, match="--encoder must be one of timm, torchvision"):
        load_encoder("keras", "resnet18")


@pytest.fixture(params=["timm", "torchvision"])
def library(request):
    return pytest.importorskip(request.param, reason=f"{request.param} {HEAVY}").__name__


def test_a_classifiers_weights_from_a_file(library, shop, pictures, tmp_path, capsys):
    """The file includes the classification head, as published files do; the encoder does not."""
    if library == "timm":
        import timm

        classifier = timm.create_model("resnet18", pretrained=False)
        other = timm.create_model("resnet34", pretrained=False)
    else:
        from torchvision import models

        classifier, other = models.resnet18(), models.resnet34()
    torch.save(classifier.state_dict(), tmp_path / "w.pt")
    save_file(classifier.state_dict(), tmp_path / "w.safetensors")
    command = ["features", "image", str(shop), "--images", str(pictures), "--encoder", library]
    command += ["--model", "resnet18", "--dtype", "float32", "--batch-size", "16", "--force"]
    rows = []
    for name in ("w.pt", "w.safetensors"):
        assert main([*command, "--weights", str(tmp_path / name)]) == 0
        rows.append(np.load(shop / "image_feat.npy"))
    assert np.array_equal(rows[0], rows[1]) and rows[0].shape == (50, 512)

    encoder = load_encoder(library, "resnet18", str(tmp_path / "w.pt"))
    pixels = torch.from_numpy(read_picture(str(pictures / "i9.png"), encoder.preprocess)) / 255
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in vars(encoder.preprocess).values()
        if isinstance(v, tuple)
    )
    classifier.fc = nn.Identity()
    with torch.inference_mode():
        expected = classifier.eval()(((pixels - mean) / std)[None])[0].numpy()
    assert np.allclose(rows[0][9], expected, atol=1e-4)

    record = read_toml(shop / "image_feat.toml")["encoder"]
    assert (record["name"], record["model"]) == (library, "resnet18")
    assert record["weights"] == "w.safetensors"
    torch.save(other.state_dict(), tmp_path / "other.pt")
    capsys.readouterr()
    assert main([*command, "--weights", str(tmp_path / "other.pt")]) == 2
    err = capsys.readouterr().err
    assert "weights of another model" in err and err.count("\n") == 1


def test_preprocessing_is_the_librarys(library, pictures):
    """The result equals the library's own transform of the same picture."""
    from PIL import Image

    encoder = load_encoder(library, "resnet18", "random")
    if library == "timm":
        import timm

        model = timm.create_model("resnet18", pretrained=False)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    else:
        from torchvision import models

        transform = models.get_model_weights("resnet18").DEFAULT.transforms()
    pixels = torch.from_numpy(read_picture(str(pictures / "i8.jpg"), encoder.preprocess)) / 255
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (encoder.preprocess.mean, encoder.preprocess.std)
    )
    with Image.open(pictures / "i8.jpg") as image:
        expected = transform(image.convert("RGB"))
    assert ((pixels - mean) / std - expected).abs().max() < 0.02  # about one of 255 steps


@pytest.mark.parametrize(
    ("library", "model", "width"),
    [
        ("timm", "vit_tiny_patch16_224", 192),
        ("timm", "tf_efficientnet_lite0", 1280),
        ("torchvision", "mobilenet_v3_small", 1024),
        ("torchvision", "vit_b_16", 768),
        ("torchvision", "inception_v3", 2048),
        ("torchvision", "vgg11", 4096),
        ("open_clip", "ViT-B-32", 512),
        ("open_clip", "RN50", 1024),
    ],
)
def test_models_of_several_kinds(library, model, width):
    pytest.importorskip(library, reason=f"{library} {HEAVY}")
    encoder = load_encoder(library, model, "random", seed=3)
    size = encoder.preprocess.size
    with torch.inference_mode():
        rows = encoder.module.eval()(torch.rand(2, 3, size, size))
    assert rows.shape == (2, width)
    again = load_encoder(library, model, "random", seed=3)
    assert again.record == encoder.record and encoder.record["seed"] == 3


def test_unknown_models_and_no_network(library, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="--model resnet-18-b: ") as caught:
        load_encoder(library, "resnet-18-b", "random")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="expected --model NAME"):
        load_encoder(library)
