"""A tuned encoder as ONNX, in full precision and with weights stored as int8.

Neither serves unexamined: `pipelines.students.encoder_tuning` compares their labels, and the
evaluation reads with the very file that is served.
"""

import logging
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np

from pipelines.students.encoder import MODEL_FILE, TOKENIZER_FILE

INT8_FOLDER = "int8"
MIN_WEIGHTS = 4096  # of a matrix; smaller ones are not worth it


def export_encoder(model: Any, folder: Path, *, int8: bool) -> Path | None:
    """Write `model.onnx` into `folder`; returns the folder of the int8 one where it was made.

    `model` maps `input_ids` and `attention_mask` to token states. Its tokenizer must lie in
    `folder` already.
    """
    _write_onnx(model, folder / MODEL_FILE)
    if not int8:
        return None
    smaller = folder.parent / INT8_FOLDER
    smaller.mkdir()
    (smaller / TOKENIZER_FILE).write_bytes((folder / TOKENIZER_FILE).read_bytes())
    _store_as_int8(folder / MODEL_FILE, smaller / MODEL_FILE)
    return smaller


def _write_onnx(model: Any, target: Path) -> None:
    import onnx
    import torch
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    # Two texts: with one the exporter would take the batch for a constant.
    sample: dict[str, Any] = {
        "input_ids": torch.ones((2, 8), dtype=torch.long),
        "attention_mask": torch.ones((2, 8), dtype=torch.long),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        exported = cast("Any", OnnxExporter)().export(model, sample, OnnxConfig(dynamic=True))
        scratch = target.parent.parent / "exported"
        exported.save_pretrained(str(scratch))
    whole = onnx.load(str(scratch / MODEL_FILE))
    _keep_token_states(whole)
    onnx.save_model(whole, str(target), save_as_external_data=False)
    for leftover in scratch.iterdir():
        leftover.unlink()
    scratch.rmdir()


def _keep_token_states(model: Any) -> None:
    """Of several outputs only the token states are read."""
    outputs = model.graph.output
    states = next((one for one in outputs if one.name == "last_hidden_state"), outputs[0])
    for other in [one for one in outputs if one.name != states.name]:
        outputs.remove(other)


def _store_as_int8(source: Path, target: Path) -> None:
    """Keep every weight matrix as int8 with a scale for each column, and compute as before.

    Not dynamic quantization: that scales activations by whatever else is in the batch, so a
    text's answer would depend on its neighbours, and golden prompts could not be checked
    (measured on MiniLM: a text alone and in a batch of 16 are at a cosine of only 0.98).
    The file shrinks to a quarter; ONNX Runtime unfolds it once, when it is loaded.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(source))
    graph = model.graph
    unfolded = []
    for weight in [one for one in graph.initializer if len(one.dims) == 2]:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < MIN_WEIGHTS:
            continue
        scale = np.maximum(np.abs(values).max(axis=0, keepdims=True), 1e-12) / 127
        small = np.round(values / scale).astype(np.int8)
        name = weight.name
        graph.initializer.remove(weight)
        graph.initializer.append(numpy_helper.from_array(small, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"))
        wide = helper.make_node(
            "Cast", [f"{name}.int8"], [f"{name}.wide"], to=onnx.TensorProto.FLOAT
        )
        product = helper.make_node("Mul", [f"{name}.wide", f"{name}.scale"], [name])
        unfolded += [wide, product]
    nodes = [*unfolded, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save_model(model, str(target), save_as_external_data=False)
