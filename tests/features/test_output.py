"""Written rows, masks and records, and no output if an error occurs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from mmssl.config import read_toml
from mmssl.data import read_dataset, write_dataset
from mmssl.data.summary import summarize
from mmssl.errors import InputError
from mmssl.features.output import Output, write_features

PRESENT = np.array([*range(10, 50), 3])  # unsorted; 9 of 50 items are missing


def blocks(rows: np.ndarray, size: int = 7):
    for start in range(0, len(PRESENT), size):
        numbers = PRESENT[start : start + size]
        yield numbers, rows[start : start + size]


def rows(width: int = 6, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(width, width))
    return (scale * rng.normal(size=(len(PRESENT), width)) @ mixing + 3).astype(np.float32)


def write(shop, made, **options):
    output = Output(folder=shop, name="text", **options)
    return write_features(output, blocks(made), 50, {"name": "test"}, "here")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_mask_and_record(shop, dtype):
    written = write(shop, rows(), dtype=dtype)
    expected = np.zeros((50, 6), dtype)
    expected[PRESENT] = rows()
    mapped = np.load(shop / "text_feat.npy", mmap_mode="r", allow_pickle=False)
    assert mapped.dtype == dtype and np.array_equal(mapped, expected)
    mask = np.load(shop / "text_mask.npy", allow_pickle=False)
    assert mask.dtype == bool and set(np.flatnonzero(mask)) == set(PRESENT)
    assert written.missing.tolist() == np.flatnonzero(~mask).tolist()
    record = read_toml(shop / "text_feat.toml")
    assert (record["items"], record["missing"], record["source"]) == (50, 9, "here")
    assert record["sha256"] == hashlib.sha256((shop / "text_feat.npy").read_bytes()).hexdigest()
    assert record["encoder"] == {"name": "test"}
    assert {p.name for p in shop.iterdir() if p.name.startswith(".")} == set()
    assert (shop / "text_feat.npy").stat().st_mode == (shop / "train.json").stat().st_mode


def test_the_data_set_reads_them_and_writes_them_again(shop, tmp_path):
    write(shop, rows())
    dataset = read_dataset(shop)
    assert np.array_equal(dataset.masks["text"], np.isin(np.arange(50), PRESENT))
    assert np.array_equal(dataset.features["text"][PRESENT], rows().astype(np.float16))
    assert summarize(dataset)["modalities"]["text"]["without_content"] == 9
    write_dataset(dataset, tmp_path / "copy")
    assert np.array_equal(read_dataset(tmp_path / "copy").masks["text"], dataset.masks["text"])
    assert read_dataset(shop, modalities=[]).masks == {}


def test_no_mask_when_nothing_is_missing(shop):
    write(shop, rows())
    everything = [(np.arange(50), np.ones((50, 3), np.float32))]
    output = Output(folder=shop, name="text", force=True)
    assert write_features(output, everything, 50, {}, "").missing.size == 0
    assert not (shop / "text_mask.npy").exists()  # the mask of the old rows is removed
    assert read_dataset(shop).masks == {}


def test_l2_and_zscore(shop):
    made = rows()
    made[4] = 0  # a zero row with content
    write(shop, made, normalize="l2", dtype="float32")
    lengths = np.linalg.norm(np.load(shop / "text_feat.npy")[PRESENT], axis=1)
    assert lengths[4] == 0 and np.allclose(np.delete(lengths, 4), 1, atol=1e-6)
    made[:, 2] = 1e3  # zero variance
    write(shop, made, normalize="zscore", dtype="float32", force=True)
    scaled = np.load(shop / "text_feat.npy")
    assert not scaled[:3].any()  # missing items are excluded and stay zero
    assert np.allclose(scaled[PRESENT].mean(0), 0, atol=1e-6)
    assert np.allclose(scaled[PRESENT].std(0), [1, 1, 0, 1, 1, 1], atol=1e-6)


@pytest.mark.parametrize("normalize", ["none", "l2", "zscore"])
def test_components_are_those_of_scikit_learn(shop, normalize):
    decomposition = pytest.importorskip(
        "sklearn.decomposition", reason="scikit-learn is the reference"
    )
    made = rows(9)
    write(shop, made, pca=4, normalize=normalize, dtype="float32")
    peer = decomposition.PCA(4, svd_solver="full").fit(made)
    expected = peer.transform(made)
    if normalize == "l2":
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    if normalize == "zscore":
        expected /= expected.std(0)
    got = np.load(shop / "text_feat.npy")[PRESENT]
    signs = np.sign((got * expected).sum(0))
    assert np.allclose(got, expected * signs, atol=1e-4)
    told = read_toml(shop / "text_feat.toml")["pca_explained"]
    assert told == pytest.approx(peer.explained_variance_ratio_.sum(), abs=1e-5)


def test_same_bytes_again(shop):
    digests = set()
    for _ in range(2):
        digests.add(write(shop, rows(9), pca=4, normalize="zscore", force=True).record["sha256"])
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a/b"}, "--name must consist of letters"),
        ({"name": ""}, "--name"),
        ({"normalize": "l3"}, "--normalize must be one of none, l2, zscore, got 'l3'"),
        ({"dtype": "int8"}, "--dtype must be one of float16, float32"),
        ({"pca": 0}, "--pca must be at least 1, got 0"),
    ],
)
def test_bad_options(shop, options, words):
    with pytest.raises(InputError, match=words):
        Output(**{"folder": shop, "name": "text"} | options)


def test_features_are_only_replaced_with_force(shop):
    write(shop, rows())
    with pytest.raises(InputError, match="file exists; use --force to replace it"):
        Output(folder=shop, name="text")


def bad_value(value: float):
    made = rows()
    made[9, 2] = value
    return made


@pytest.mark.parametrize(
    ("made", "options", "words"),
    [
        (bad_value(np.nan), {}, "features of item 19 must be finite"),
        (bad_value(np.inf), {"pca": 2}, "features of item 19 must be finite"),
        (
            bad_value(7e4),
            {},
            r"--dtype float16: expected values up to 65504, got 70000 for item 19",
        ),
        (rows(), {"pca": 7}, r"--pca must be in 1 \.\. 6 for 50 rows of 6 dimensions, got 7"),
        (rows(60), {"pca": 45}, r"--pca must be in 1 \.\. 41 for 41 rows of 60 dimensions, got 45"),
        (rows()[:0], {}, "expected at least one item with content"),
    ],
)
def test_nothing_is_written(shop, untouched, made, options, words):
    feed = [] if not len(made) else blocks(made)
    with pytest.raises(InputError, match=words):
        write_features(Output(folder=shop, name="text", **options), feed, 50, {}, "")
    assert untouched()


@pytest.mark.parametrize("error", [RuntimeError("encoder"), KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupt_leaves_the_old_ones(shop, error):
    write(shop, rows())
    old = {p.name: p.read_bytes() for p in shop.iterdir()}

    def interrupted():
        yield PRESENT[:5], rows()[:5]
        raise error

    with pytest.raises(type(error)):
        write_features(Output(folder=shop, name="text", force=True), interrupted(), 50, {}, "")
    assert {p.name: p.read_bytes() for p in shop.iterdir()} == old


@pytest.mark.slow
def test_a_full_disk_is_one_line(shop, untouched):
    """Simulate a full disk by a limit on file sizes, which makes allocation fail the same way."""
    code = f"""
        import resource
        import numpy as np
        from pathlib import Path
        from mmssl.errors import InputError
        from mmssl.features.output import Output, write_features

        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        feed = [(np.arange(50), np.ones((50, 4096), np.float32))]
        try:
            write_features(Output(folder=Path({str(shop)!r}), name="text"), feed, 50, {{}}, "")
        except InputError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.stdout == f"{shop / 'text_feat.npy'}: can't be written: File too large\n", done
    assert untouched()
