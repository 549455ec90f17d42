"""A tuned encoder as ONNX, in full precision and as int8. Neither serves unexamined:
`pipelines.students.encoder_tuning` compares their labels, and the evaluation reads with the file.
"""

import logging
import warnings
from pathlib import Path
from typing import Any, cast

from pipelines.encoder import MODEL_FILE, TOKENIZER_FILE

INT8_FOLDER = "int8"


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
    _quantize(folder / MODEL_FILE, smaller / MODEL_FILE)
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


def _quantize(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it advises on standard error
    quantize_dynamic(
        str(source),
        str(target),
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gather"],
    )
