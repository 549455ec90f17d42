"""An encoder while it is tuned, by adapters or whole, under the head that it will serve with.

The head is fitted on the frozen encoder first and the tuning starts from there (Kumar et al.,
Fine-Tuning can Distort Pretrained Features, 2022: "LP-FT"). In the end the encoder is exported
and the head fitted again, on the vectors of the very file that will be served.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pipelines.child import Channel
from pipelines.errors import TrainingFailed
from pipelines.rows import TrainingRow
from pipelines.students.causal import best_device
from pipelines.students.encoder import TOKENIZER_FILE, Encoder, Vectors
from pipelines.students.export import export_encoder
from pipelines.students.fit import Data, best_temperature, finished_head, fit
from pipelines.students.head import Head, save_head
from pipelines.work import Host, TrainWork

if TYPE_CHECKING:
    import torch

ENCODER_FOLDER = "encoder"
# int8 is served where it gives the same label to this share of the texts.
INT8_PARITY = 0.99


class EncoderTuning:
    """Mean-pooled unit vectors and a linear head, with cross entropy by the labels' weights."""

    def __init__(
        self,
        work: TrainWork,
        host: Host,
        training: Sequence[TrainingRow],
        calibration: Sequence[TrainingRow],
    ) -> None:
        import torch
        from transformers import AutoModel

        recipe = work.recipe
        torch.manual_seed(work.seed)
        torch.set_num_threads(host.threads)
        self._work, self._recipe, self._threads = work, recipe, host.threads
        self._base = host.path(work.base)
        self._device = best_device()
        self._training, self._calibration = list(training), list(calibration)
        self._labels = list(work.labels)
        self._tokenizer = self._load_tokenizer()
        model = AutoModel.from_pretrained(
            self._base, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        self._model: Any = self._adapted(model).to(self._device)
        self._ids = [item.ids for item in self._encode(training)]
        self._head, self._targets = self._frozen_head()
        self._model.train()
        self.lengths = [len(ids) for ids in self._ids]
        way = f"LoRA of rank {recipe.rank} on" if recipe.rank else "all of"
        self.description = f"{way} {work.base_name}"

    def parameters(self) -> "dict[str, torch.nn.Parameter]":
        tuned = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            # A pooler behind the token states takes no part, and gets no gradient.
            if parameter.requires_grad and "pooler" not in name
        }
        return tuned | {f"head.{name}": value for name, value in self._head.named_parameters()}

    def loss(self, rows: tuple[int, ...]) -> "torch.Tensor":
        import torch

        vectors = self._vectors([self._ids[row] for row in rows])
        targets = torch.tensor([self._targets[row] for row in rows], device=self._device)
        weights = torch.tensor([self._training[row].weight for row in rows], device=self._device)
        surprise = torch.nn.functional.cross_entropy(
            self._head(vectors).float(),
            targets,
            reduction="none",
            label_smoothing=self._recipe.label_smoothing,
        )
        return (surprise * weights).sum() / weights.sum()

    def save(self, scratch: Path, channel: Channel) -> dict[str, Any]:
        """The merged encoder as ONNX with its tokenizer, and the head on its vectors."""
        channel.progress("export", 0, 3)
        model = self._model.merge_and_unload() if self._recipe.rank else self._model
        folder = scratch / ENCODER_FOLDER
        folder.mkdir()
        (folder / TOKENIZER_FILE).write_bytes((self._base / TOKENIZER_FILE).read_bytes())
        int8 = export_encoder(model.eval().to("cpu"), folder, int8=self._recipe.int8)
        channel.progress("export", 1, 3)
        head, data = self._fitted(folder)
        parity = None
        if int8 is not None:
            smaller, smaller_data = self._fitted(int8)
            same = np.array(_labels_of(head, data)) == np.array(_labels_of(smaller, smaller_data))
            parity = float(same.mean())
            if parity >= INT8_PARITY:
                (int8 / "model.onnx").replace(folder / "model.onnx")
                head = smaller
            for leftover in int8.iterdir():
                leftover.unlink()
            int8.rmdir()
        channel.progress("export", 3, 3)
        about = {
            "encoder": self._work.encoder.digest,  # named anew when the encoder is published
            "max_tokens": self._recipe.max_tokens,
            "task": self._work.task,
        }
        save_head(scratch, head, about)
        return {
            "temperature": round(head.temperature, 4),
            "int8": parity is not None and parity >= INT8_PARITY,
            "int8_parity": parity,
        }

    def _load_tokenizer(self) -> Tokenizer:
        """The file that will be served: training and serving cut a text into the same tokens."""
        path = self._base / TOKENIZER_FILE
        if not path.is_file():
            raise TrainingFailed(f"the base encoder {self._work.base_name} has no {path.name}")
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._recipe.max_tokens)
        return tokenizer

    def _adapted(self, model: Any) -> Any:
        if not self._recipe.rank:
            return model
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            r=self._recipe.rank,
            lora_alpha=2 * self._recipe.rank,
            lora_dropout=0.0,
            target_modules="all-linear",
        )
        return get_peft_model(model, lora)

    def _encode(self, rows: Sequence[TrainingRow]) -> list[Any]:
        return list(self._tokenizer.encode_batch([row.text for row in rows]))

    def _vectors(self, ids: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Unit vectors, shape (texts, dimension), as `pipelines.students.encoder` makes them."""
        import torch

        width = max(map(len, ids))
        tokens = torch.zeros((len(ids), width), dtype=torch.long)
        mask = torch.zeros((len(ids), width), dtype=torch.long)
        for row, item in enumerate(ids):
            tokens[row, : len(item)] = torch.tensor(item)
            mask[row, : len(item)] = 1
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        states = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        weights = mask[:, :, None].float()
        pooled = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=1)

    def _frozen_head(self) -> "tuple[torch.nn.Linear, list[int]]":
        """A head on the untuned encoder, over the labels that have examples."""
        import torch

        self._model.eval()
        with torch.inference_mode():
            parts = [
                self._vectors(self._ids[start : start + 64]).cpu().numpy()
                for start in range(0, len(self._ids), 64)
            ]
        present = sorted({row.label for row in self._training}, key=self._labels.index)
        data = Data.of(self._training, np.concatenate(parts), present)
        weight, bias = fit(data, len(present))
        head = torch.nn.Linear(weight.shape[1], len(present))
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(bias))
        return head.to(self._device), [int(target) for target in data.targets]

    def _fitted(self, folder: Path) -> tuple[Head, Vectors]:
        """The head on an exported encoder, calibrated on unseen rows; and all rows' vectors."""
        encoder = Encoder(folder, threads=self._threads, max_tokens=self._recipe.max_tokens)
        rows = [*self._training, *self._calibration]
        vectors = encoder.encode([row.text for row in rows])
        data = Data.of(rows, vectors, self._labels)
        seen = np.arange(len(self._training))
        weight, bias = fit(data.rows(seen), len(self._labels))
        unseen = np.arange(len(seen), len(rows))
        known = unseen[np.isin(data.targets[unseen], data.targets[seen])]
        logits: NDArray[np.float64] = vectors[known] @ weight.T + bias
        temperature = best_temperature([logits], [data.targets[known]])
        # What has served to calibrate may teach the head in the end.
        weight, bias = fit(data, len(self._labels))
        return finished_head(self._labels, weight, bias, temperature, data), vectors


def _labels_of(head: Head, vectors: Vectors) -> list[str]:
    return [answer.label for answer in head.answer(vectors)]
