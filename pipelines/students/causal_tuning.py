"""A chat model while LoRA adapters are tuned on it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.child import Channel
from pipelines.errors import TrainingFailed
from pipelines.rows import TrainingRow
from pipelines.students.causal import (
    ADAPTER_CONFIG_FILE,
    Branch,
    CausalConfig,
    ChatModel,
    Prompts,
    check_adapter,
    save_config,
)
from pipelines.students.fit import best_temperature
from pipelines.work import Host, TrainWork

if TYPE_CHECKING:
    import torch

IGNORED = -100  # a position without loss, as torch's cross entropy has it
ADAPTER = "default"  # peft's name for the first; it leaves no trace in the files


class CausalTuning:
    """LoRA on all linear layers (Hu et al., 2021). The loss counts the answer's tokens only."""

    def __init__(
        self,
        work: TrainWork,
        host: Host,
        training: Sequence[TrainingRow],
        calibration: Sequence[TrainingRow],
    ) -> None:
        import torch
        from peft import LoraConfig, get_peft_model

        recipe = work.recipe
        torch.manual_seed(work.seed)
        chat = ChatModel(host.path(work.base), threads=host.threads)
        self._device = chat.device
        self._base_name = work.base_name
        self._labels = list(work.labels)
        self._config = CausalConfig(
            labels=tuple(self._labels),
            instructions=work.instructions,
            temperature=1.0,
            max_tokens=recipe.max_tokens,
            chat_model=work.base.digest,
            task=work.task,
        )
        self._prompts = Prompts(chat.tokenizer, self._config.instructions, recipe.max_tokens)
        lora = LoraConfig(
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        for parameter in chat.model.parameters():
            parameter.requires_grad_(False)
        self._model: Any = get_peft_model(chat.model, lora)
        self._model.train()
        self._training = [self._example(row) for row in training]
        self._calibration = list(calibration)
        self.lengths = [len(ids) for ids, _, _ in self._training]
        self.description = f"LoRA of rank {recipe.rank} on {work.base_name}"

    def parameters(self) -> "dict[str, torch.nn.Parameter]":
        return {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }

    def loss(self, rows: tuple[int, ...]) -> "torch.Tensor":
        """Mean over the rows of each answer's mean cross entropy, by the labels' weights."""
        import torch

        ids, mask, targets = self._padded([self._training[row][:2] for row in rows])
        states = self._states(ids, mask)[:, :-1]
        targets = targets[:, 1:]
        counted = targets != IGNORED
        logits = self._model.get_output_embeddings()(states[counted]).float()
        surprise = torch.nn.functional.cross_entropy(logits, targets[counted], reduction="none")
        row_of = counted.nonzero()[:, 0]
        share = counted.sum(dim=1)[row_of]
        weights = torch.tensor([self._training[row][2] for row in rows], device=self._device)
        return (surprise / share * weights[row_of]).sum() / weights.sum()

    def save(self, scratch: Path, channel: Channel) -> dict[str, Any]:
        """The adapters in peft's own format, and `student.json` with the temperature."""
        from dataclasses import replace

        self._model.eval()
        temperature = self._temperature(channel)
        self._model.save_pretrained(str(scratch), safe_serialization=True)
        (scratch / "README.md").unlink(missing_ok=True)  # the model card is ours
        settle_adapter_config(scratch, self._base_name)
        check_adapter(scratch)
        save_config(scratch, replace(self._config, temperature=temperature))
        return {"temperature": round(temperature, 4)}

    def _example(self, row: TrainingRow) -> tuple[list[int], list[int], float]:
        """Tokens, targets (only the answer's) and weight."""
        prompt, _, _ = self._prompts.prompt(row.text)
        answer = self._prompts.answer(row.label)
        targets = [IGNORED] * len(prompt) + list(answer)
        if len(answer) < 2:
            raise TrainingFailed(f"the label {row.label!r} has no tokens to learn")
        return [*prompt, *answer], targets, row.weight

    def _padded(
        self, examples: Sequence[tuple[list[int], list[int]]]
    ) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Tokens, attention mask and targets, each of shape (examples, longest)."""
        import torch

        width = max(len(ids) for ids, _ in examples)
        shape = (len(examples), width)
        ids = torch.full(shape, self._prompts.end)
        mask, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
        for row, (tokens, wanted) in enumerate(examples):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            targets[row, : len(wanted)] = torch.tensor(wanted)
        return ids.to(self._device), mask.to(self._device), targets.to(self._device)

    def _states(self, ids: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
        """Hidden states, shape (examples, tokens, size): no logits for tokens without a loss."""
        states: torch.Tensor = (
            self._model.get_base_model()
            .get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
            .last_hidden_state
        )
        return states

    def _temperature(self, channel: Channel) -> float:
        """Fitted on the branches of the trie that the right labels of unseen rows pass."""
        import torch

        trie = self._prompts.trie(self._labels)
        logits, targets = [], []
        for done, row in enumerate(self._calibration, start=1):
            prompt, _, _ = self._prompts.prompt(row.text)
            answer = self._prompts.answer(row.label)
            ids = torch.tensor([[*prompt, *answer]], device=self._device)
            with torch.inference_mode():
                states = self._states(ids, torch.ones_like(ids))[0, len(prompt) - 1 :]
                scores = self._model.get_output_embeddings()(states).float().cpu().numpy()
            for branch, chosen in passed(trie, answer):
                choices = list(branch.choices)
                logits.append(scores[len(branch.tokens)][choices][None, :])
                targets.append(np.array([choices.index(chosen)]))
            channel.progress("calibrate", done, len(self._calibration))
        return best_temperature(logits, targets)


def settle_adapter_config(folder: Path, base_name: str) -> None:
    """peft writes where the base lies on this machine, and a set in any order: not in a hash."""
    path = folder / ADAPTER_CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")


def passed(trie: Branch, answer: Sequence[int]) -> list[tuple[Branch, int]]:
    """The branches on the way to an answer, each with the token that was chosen there."""
    way = []
    branch = trie
    while branch.label is None:
        chosen = answer[len(branch.tokens)]
        way.append((branch, chosen))
        branch = branch.choices[chosen]
    return way
