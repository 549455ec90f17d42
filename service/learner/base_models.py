"""The base model of a recipe: found, checked against the memory there is, kept by content."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import structlog

from pipelines.errors import SettingsError, TrainingFailed
from pipelines.recipes import Recipe
from pipelines.students.bases import over_free_memory, over_memory_limit, require_training_stack
from pipelines.students.families import family_of
from pipelines.students.head import name_encoder
from pipelines.work import AdoptWork, Input
from service.learner.executor import Executor
from service.settings import Settings
from storage.artifacts import Artifact, Artifacts, hash_file

log = structlog.get_logger()

TOKENIZER_FILES = ("config.json", "tokenizer.json")
ENCODER_FOLDER = "encoder"  # what a trainer leaves of a tuned encoder, in its scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """What a recipe starts from, by the hash of its content."""

    input: Input
    name: str


class BaseModels:
    """Gives each recipe its base model, and takes tuned encoders in."""

    def __init__(
        self, settings: Settings, artifacts: Artifacts, executor: Executor, encoder: Artifact
    ) -> None:
        self._settings = settings
        self._artifacts = artifacts
        self._executor = executor
        self._encoder = encoder

    def find(self, recipe: Recipe) -> BaseModel:
        """The base model of `recipe`.

        Raises `TrainingStackMissing`, `SettingsError` and `TrainingFailed` with what to do.
        """
        if not recipe.tunes:
            name = str(self._encoder.about["name"])
            return BaseModel(input=Input("encoder", self._encoder.digest), name=name)
        require_training_stack()
        source = self._settings.base_model(recipe.name)
        self._refuse_too_large(recipe, source)
        digest = source_digest(source)
        self._executor.offer(Input("source", digest), source)
        name = source.stem if source.is_file() else source.name
        if family_of(recipe).base_kind == "chat_model":
            adopted = self._adopted(digest) or self._adopt(source, name, digest)
            return BaseModel(input=Input("chat_model", adopted.digest), name=name)
        # The installed encoder's files lie in a folder called `model`.
        chosen = self._settings.recipes.get(recipe.name)
        named = chosen is not None and chosen.base_model is not None
        return BaseModel(
            input=Input("source", digest), name=name if named else self._settings.encoder.name
        )

    def take_in(self, recipe: Recipe, base: BaseModel, scratch: Path) -> str:
        """What a version of this recipe reads with; a tuned encoder becomes an artifact first."""
        tuned = scratch / ENCODER_FOLDER
        if not tuned.is_dir():
            return base.input.digest
        about = {
            "name": f"{base.name}, tuned",
            "max_tokens": recipe.max_tokens,
            "base": base.input.digest,
            "recipe": recipe.name,
        }
        aside = scratch.with_suffix(".encoder")
        tuned.rename(aside)
        try:
            encoder = self._artifacts.publish("encoder", aside, about)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        name_encoder(scratch, encoder.digest)
        return encoder.digest

    def _refuse_too_large(self, recipe: Recipe, source: Path) -> None:
        free = int(psutil.virtual_memory().available // 2**20)
        limit = self._settings.trainer.memory_limit_mb
        for why in (
            over_memory_limit(recipe, source, limit),
            over_free_memory(recipe, source, free),
        ):
            if why:
                raise TrainingFailed(why)

    def _adopted(self, source: str) -> Artifact | None:
        for digest in self._artifacts.digests("chat_model"):
            if self._artifacts.about("chat_model", digest).get("source") == source:
                return self._artifacts.look("chat_model", digest)
        return None

    def _adopt(self, source: Path, name: str, digest: str) -> Artifact:
        log.info("base_model_adopted", name=name, source=str(source))
        scratch = self._settings.folder.new_scratch()
        scratch.mkdir(parents=True)
        try:
            made = self._executor.run(AdoptWork(source=Input("source", digest)), scratch)
            about: Mapping[str, Any] = {"name": name, "source": digest, **made}
            return self._artifacts.publish("chat_model", scratch, about)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def source_digest(source: Path) -> str:
    """Content hash of a GGUF file, or of the files in a folder that make the model."""
    if source.is_file():
        return hash_file(source)
    names = sorted(
        path.name
        for path in source.iterdir()
        if path.suffix == ".safetensors" or path.name in TOKENIZER_FILES
    )
    if not names:
        raise SettingsError(f"{source} holds no model")
    parts = "\n".join(f"{name} {hash_file(source / name)}" for name in names)
    return sha256(parts.encode()).hexdigest()
