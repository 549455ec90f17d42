"""A chat model as this program keeps it: safetensors, tokenizer and template in one folder.

    python -m pipelines.students.adopt SPEC.json

Reads a Hugging Face folder or a GGUF file. Done once for each base model; adapters name it by
its content.
"""

from pathlib import Path
from typing import Any

from pipelines.child import Channel, run_child
from pipelines.errors import TrainingFailed
from pipelines.students.bases import require_training_stack
from pipelines.work import AdoptWork, Host


def adopt(work: AdoptWork, host: Host, channel: Channel) -> dict[str, Any]:
    """Write the source into the scratch folder; returns the number of weights."""
    require_training_stack()
    channel.progress("adopt", 0, 3)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, scratch = host.path(work.source), Path(host.scratch)
    where: dict[str, Any] = {"pretrained_model_name_or_path": source}
    how: dict[str, Any] = {"use_safetensors": True}
    if source.suffix == ".gguf":
        from transformers import GgufConfig

        where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
        how = {"quantization_config": GgufConfig(dequantize=True)}
    tokenizer = AutoTokenizer.from_pretrained(**where, local_files_only=True)
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise TrainingFailed(f"{source.name} is no chat model: it has no chat template")
    channel.progress("adopt", 1, 3)
    # As it is stored: a model in half precision stays so, and a quantized one needs no more.
    dtype = torch.float16 if source.suffix == ".gguf" else "auto"
    model: Any = AutoModelForCausalLM.from_pretrained(
        **where, **how, dtype=dtype, local_files_only=True
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    channel.progress("adopt", 2, 3)
    if dtype != "auto":
        model = model.to(dtype)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch, save_jinja_files=False)
    channel.progress("adopt", 3, 3)
    return {"weights": sum(parameter.numel() for parameter in model.parameters())}


if __name__ == "__main__":
    run_child(AdoptWork, adopt)
