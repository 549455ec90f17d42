"""A tiny chat model with random weights and adapters on it, made without a network.

It is made in a process of its own, so that the tests' process needs no training stack; what
`ChatModel` answers there is what an engine has to answer. Run as a program to make one.
"""

import atexit
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from gateway_rig import ALL_TEXTS, LABELS, TASK

from pipelines.errors import TrainingStackMissing
from pipelines.students.bases import require_training_stack
from pipelines.students.causal import CausalConfig, ChatModel, load_config, save_config
from storage.artifacts import Artifacts
from storage.live import LiveStudent

ROOT = Path(__file__).parents[2]
ADAPTERS = ("one", "two")
GOLDEN = ALL_TEXTS[::3]
MAX_TOKENS = 2048
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class TinyChatModel:
    """The folder `base`, a folder for each adapter, and the answers to all golden texts."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def adapter(self, name: str) -> Path:
        return self.folder / name

    def answers(self, name: str) -> list[tuple[str, float]]:
        """Label and confidence of `ChatModel` for each of `GOLDEN`."""
        told = json.loads((self.folder / "answers.json").read_text())[name]
        return [(str(label), float(confidence)) for label, confidence, *_ in told]

    def publish(
        self,
        data_dir: Path,
        number: int,
        adapter: str = "one",
        *,
        threshold: float | None = 0.0,
        golden: Sequence[Mapping[str, Any]] | None = None,
        base: Path | None = None,
    ) -> LiveStudent:
        """Chat model, student and report as artifacts in `data_dir`."""
        artifacts = Artifacts(data_dir / "artifacts")
        scratch = data_dir / f"causal-{number}"
        shutil.copytree(base or self.base, scratch)
        chat_model = artifacts.publish("chat_model", scratch, {"name": "tiny"})
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(self.adapter(adapter), scratch)
        save_config(scratch, replace(load_config(scratch), chat_model=chat_model.digest))
        student = artifacts.publish("student", scratch, {"number": number})
        if golden is None:
            golden = [
                {"text": text, "label": label, "confidence": confidence}
                for text, (label, confidence) in zip(GOLDEN, self.answers(adapter), strict=True)
            ]
        scratch.mkdir(exist_ok=True)
        (scratch / "golden.json").write_text(json.dumps(golden))
        report = artifacts.publish("report", scratch, {"number": number})
        return LiveStudent(
            name=f"{TASK}-v{number}-{student.digest[:8]}",
            number=number,
            student=student.digest,
            family="causal",
            base=chat_model.digest,
            report=report.digest,
            decision=f"decision-{number}",
            threshold=threshold,
        )


@lru_cache(maxsize=1)
def tiny_chat_model() -> TinyChatModel:
    """The same for all tests: making it takes some ten seconds."""
    try:
        require_training_stack()
    except TrainingStackMissing as error:
        pytest.skip(str(error))
    folder = Path(mkdtemp(prefix="flywheel-chat-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "rigs")))
    subprocess.run(
        [sys.executable, __file__, str(folder)],
        check=True,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return TinyChatModel(folder)


def make(folder: Path) -> None:
    """Base, adapters, and what they answer."""
    base = folder / "base"
    _make_base(base)
    for seed, name in enumerate(ADAPTERS):
        _make_adapter(base, folder / name, seed)
    model = ChatModel(base, threads=1)
    answers = {}
    for name in ADAPTERS:
        model.load(name, folder / name)
        answers[name] = model.read(name, GOLDEN)
    (folder / "answers.json").write_text(json.dumps(answers))


def _make_base(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*ALL_TEXTS, *LABELS], trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2 * MAX_TOKENS,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _make_adapter(base: Path, folder: Path, seed: int) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(base), lora).save_pretrained(str(folder))
    config = CausalConfig(
        labels=LABELS,
        instructions="Sort the mail.",
        temperature=2.0,
        max_tokens=MAX_TOKENS,
        chat_model="not published yet",
        task=TASK,
    )
    save_config(folder, config)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
