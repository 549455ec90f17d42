"""The causal student: adapters on a chat model that writes one label of a closed set.

The label is decoded along the trie of the labels' tokens, so that the answer is always a label
and its probability is normalised over the labels. The prompt and the trie are here once, for
training, evaluation and serving.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pipelines.errors import ArtifactDamaged
from pipelines.render import chat_messages
from pipelines.students.head import CONFIG_FILE
from pipelines.types import LabelledAnswer

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
FAMILY: Final = "causal"

Logits = NDArray[np.float32]


class CausalReply(NamedTuple):
    """What the student says to one text, and how much of the text it read."""

    label: str
    confidence: float
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalConfig:
    """What a causal student is, beside its weights. `temperature` calibrates its confidence."""

    labels: tuple[str, ...]
    instructions: str
    temperature: float
    max_tokens: int  # of the prompt's text
    chat_model: str  # content hash of the base that the adapters belong to
    task: str


@dataclass(frozen=True, slots=True)
class Branch:
    """A point of the trie: the tokens that lead here, and what may come next.

    Tokens without an alternative are passed over: only a `Branch` costs a forward pass.
    """

    tokens: tuple[int, ...]
    choices: Mapping[int, "Branch"] = field(default_factory=dict)
    label: str | None = None  # at a leaf


def label_trie(sequences: Mapping[str, Sequence[int]]) -> Branch:
    """The trie of the labels' token sequences; no sequence may be the start of another."""

    def grow(labels: list[str], depth: int) -> Branch:
        first = tuple(sequences[labels[0]])
        if len(labels) == 1:
            return Branch(first, label=labels[0])
        while len({sequences[label][depth] for label in labels}) == 1:
            depth += 1
        members: dict[int, list[str]] = {}
        for label in labels:
            members.setdefault(sequences[label][depth], []).append(label)
        return Branch(
            first[:depth], {token: grow(some, depth + 1) for token, some in members.items()}
        )

    if len({tuple(tokens) for tokens in sequences.values()}) < len(sequences):
        raise ValueError("two labels have the same tokens")
    return grow(list(sequences), 0)


def most_probable(
    trie: Branch, logits_after: Callable[[tuple[int, ...]], Logits], temperature: float
) -> LabelledAnswer:
    """The most probable label and its probability, by best-first search.

    A label's probability is the product, over the branches on its way, of the softmax over
    that branch's choices. Extending a path never makes it more probable, so the first label
    that reaches the top of the heap is the most probable of all.
    """
    order = count()  # so that the heap never compares branches
    heap = [(0.0, next(order), trie)]
    while True:
        surprise, _, branch = heappop(heap)
        if branch.label is not None:
            return LabelledAnswer(branch.label, float(np.exp(-surprise)))
        tokens = list(branch.choices)
        scaled = logits_after(branch.tokens)[tokens].astype(np.float64) / temperature
        log_probabilities = scaled - np.logaddexp.reduce(scaled)
        for choice, log_probability in zip(branch.choices.values(), log_probabilities, strict=True):
            heappush(heap, (surprise - float(log_probability), next(order), choice))


class Prompts:
    """Texts to tokens through the model's chat template."""

    def __init__(self, tokenizer: Any, instructions: str, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        # A text goes between what the template puts before and after it. Each part is tokenized
        # alone, so that no text can merge with, or imitate, the template's own tokens.
        mark = "\x00TEXT\x00"
        whole = tokenizer.apply_chat_template(
            chat_messages(mark, instructions),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        if whole.count(mark) != 1:
            raise ArtifactDamaged("the chat model's template does not show a user message once")
        before, after = whole.split(mark)
        self._before, self._after = self._ids(before), self._ids(after)
        self.end: int = tokenizer.eos_token_id

    def prompt(self, text: str) -> tuple[list[int], int, bool]:
        """Tokens of the whole prompt, tokens of the text, and whether the text was cut."""
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        kept = ids[: self._max_tokens]
        return [*self._before, *kept, *self._after], len(kept), len(kept) < len(ids)

    def answer(self, label: str) -> tuple[int, ...]:
        """The tokens that the student writes for a label, the end of its turn included."""
        return (*self._ids(label), self.end)

    def trie(self, labels: Sequence[str]) -> Branch:
        return label_trie({label: self.answer(label) for label in labels})

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


class ChatModel:
    """A base chat model in memory, with adapters under names that are never reused.

    Not for several threads at once.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        self.device = best_device()
        # Half precision rounds differently from one processor to the next; a GPU needs it.
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True
            )
        except Exception as error:  # transformers raises whatever its parts do
            raise ArtifactDamaged(f"the chat model cannot be loaded: {error}") from error
        self.model: Any = cast(Any, model).to(self.device).eval()
        self._adapted: Any = None
        self._configs: dict[str, CausalConfig] = {}
        self._tries: dict[tuple[str, ...], Branch] = {}

    def load(self, name: str, folder: Path) -> CausalConfig:
        """Add the adapters in `folder`. Raises `ArtifactDamaged` for anything that is not one."""
        from peft import PeftModel

        if name in self._configs:
            raise ValueError(f"{name} is loaded already")
        config = load_config(folder)
        check_adapter(folder)
        try:
            if self._adapted is None:
                self._adapted = PeftModel.from_pretrained(
                    self.model, str(folder), adapter_name=name, use_safetensors=True
                ).eval()
            else:
                self._adapted.load_adapter(str(folder), adapter_name=name, use_safetensors=True)
        except (ValueError, KeyError, RuntimeError, OSError, TypeError) as error:
            raise ArtifactDamaged(f"the adapters cannot be loaded: {error}") from error
        self._configs[name] = config
        return config

    def unload(self, name: str) -> None:
        del self._configs[name]
        if self._configs:
            self._adapted.delete_adapter(name)
        else:
            self.model, self._adapted = self._adapted.unload(), None

    def read(self, name: str, texts: Sequence[str]) -> list[CausalReply]:
        """The answers of the adapters `name`, one text after the other."""
        self._adapted.set_adapter(name)
        return self._read(self._adapted, self._configs[name], texts)

    def read_without_adapters(
        self, config: CausalConfig, texts: Sequence[str]
    ) -> list[CausalReply]:
        """The answers of the base model used directly."""
        if self._adapted is None:
            return self._read(self.model, config, texts)
        with self._adapted.disable_adapter():
            return self._read(self._adapted, config, texts)

    def _read(self, model: Any, config: CausalConfig, texts: Sequence[str]) -> list[CausalReply]:
        prompts = Prompts(self.tokenizer, config.instructions, config.max_tokens)
        if config.labels not in self._tries:
            self._tries[config.labels] = prompts.trie(config.labels)
        trie = self._tries[config.labels]
        replies = []
        for text in texts:
            ids, tokens, truncated = prompts.prompt(text)
            answer = most_probable(trie, self._after(model, ids), config.temperature)
            replies.append(CausalReply(answer.label, answer.confidence, tokens, truncated))
        return replies

    def _after(self, model: Any, prompt: Sequence[int]) -> Callable[[tuple[int, ...]], Logits]:
        """Logits of the token that follows the prompt and some tokens of an answer.

        The prompt is read once; each path is read behind its keys and values.
        """
        import torch

        def forward(ids: Sequence[int], cache: Any) -> Any:
            with torch.inference_mode():
                return model(
                    input_ids=torch.tensor([list(ids)], device=self.device),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )

        first = forward(prompt, None)
        cache = first.past_key_values

        def after(path: tuple[int, ...]) -> Logits:
            if not path:
                return as_array(first.logits)
            if (read_behind := cache.get_seq_length() - len(prompt)) > 0:
                cache.crop(-read_behind)
            return as_array(forward(path, cache).logits)

        def as_array(logits: Any) -> Logits:
            row: Logits = logits[0, -1].float().cpu().numpy()
            return row

        return after


class CausalReader:
    """A chat model with one student's adapters, in this process."""

    def __init__(self, base: Path, folder: Path, *, threads: int) -> None:
        self._model = ChatModel(base, threads=threads)
        self._config = self._model.load("student", folder)

    def answer(self, texts: Sequence[str]) -> list[LabelledAnswer]:
        replies = self._model.read("student", texts)
        return [LabelledAnswer(reply.label, reply.confidence) for reply in replies]

    def untuned(self, labels: Sequence[str]) -> "_Untuned":
        """The same chat model without the adapters; `labels` are its own."""
        return _Untuned(self._model, replace(self._config, temperature=1.0))


class _Untuned:
    def __init__(self, model: ChatModel, config: CausalConfig) -> None:
        self._model, self._config = model, config

    def answer(self, texts: Sequence[str]) -> list[LabelledAnswer]:
        replies = self._model.read_without_adapters(self._config, texts)
        return [LabelledAnswer(reply.label, reply.confidence) for reply in replies]

    def untuned(self, labels: Sequence[str]) -> "_Untuned":
        return self


def best_device() -> str:
    """Where tensors go: a CUDA or Apple GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def save_config(folder: Path, config: CausalConfig) -> None:
    text = json.dumps(
        {"format": 1, "family": FAMILY, **asdict(config)}, ensure_ascii=False, indent=1
    )
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def load_config(folder: Path) -> CausalConfig:
    """Read and check `student.json`; raises `ArtifactDamaged` for anything else."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if content.pop("format") != 1 or content.pop("family") != FAMILY:
            raise ValueError("it is of another family or format")
        config = CausalConfig(**{**content, "labels": tuple(content["labels"])})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactDamaged(f"{CONFIG_FILE} cannot be read: {error}") from error
    if len(config.labels) < 2 or len(set(config.labels)) < len(config.labels):
        raise ArtifactDamaged(f"{CONFIG_FILE} names its labels twice, or too few of them")
    if not 0 < config.temperature < float("inf"):
        raise ArtifactDamaged(f"{CONFIG_FILE} holds a temperature that is none")
    return config


def check_adapter(folder: Path) -> None:
    """Read every number of the adapters: all must be finite, and there must be some."""
    try:
        with safe_open(str(folder / ADAPTER_FILE), framework="numpy") as file:
            names = list(file.keys())
            finite = all(bool(np.isfinite(file.get_tensor(name)).all()) for name in names)
        json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ArtifactDamaged(f"the adapters cannot be read: {error}") from error
    if not names or not finite:
        raise ArtifactDamaged("the adapters are empty or hold numbers that are not finite")
