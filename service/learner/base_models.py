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
from pipelines.recipes import (
    Recipe,
    over_free_memory,
    over_memory_limit,
    require_training_stack,
)
from pipelines.students.head import name_encoder
from service.learner.trainer import Trainer
from service.settings import Settings
from storage.artifacts import Artifact, Artifacts, hash_file

log = structlog.get_logger()

TOKENIZER_FILES = ("config.json", "tokenizer.json")
ENCODER_FOLDER = "encoder"  # what a trainer leaves of a tuned encoder, in its scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """What a recipe starts from. `digest` is of its content."""

    path: Path
    digest: str
    name: str


class BaseModels:
    """Gives each recipe its base model, and takes tuned encoders in."""

    def __init__(
        self, settings: Settings, artifacts: Artifacts, trainer: Trainer, encoder: Artifact
    ) -> None:
        self._settings = settings
        self._artifacts = artifacts
        self._trainer = trainer
        self._encoder = encoder

    def find(self, recipe: Recipe) -> BaseModel:
        """The base model of `recipe`.

        Raises `TrainingStackMissing`, `SettingsError` and `TrainingFailed` with what to do.
        """
        if not recipe.tunes:
            name = str(self._encoder.about["name"])
            return BaseModel(path=self._encoder.path, digest=self._encoder.digest, name=name)
        require_training_stack()
        source = self._settings.base_model(recipe.name)
        self._refuse_too_large(recipe, source)
        digest = source_digest(source)
        name = source.stem if source.is_file() else source.name
        if recipe.family == "head":
            # The installed encoder's files lie in a folder called `model`.
            chosen = self._settings.recipes.get(recipe.name)
            named = chosen is not None and chosen.base_model is not None
            return BaseModel(
                path=source, digest=digest, name=name if named else self._settings.encoder.name
            )
        adopted = self._adopted(digest) or self._adopt(source, name, digest)
        return BaseModel(path=adopted.path, digest=adopted.digest, name=name)

    def take_in(self, recipe: Recipe, base: BaseModel, scratch: Path) -> str:
        """What a version of this recipe reads with; a tuned encoder becomes an artifact first."""
        tuned = scratch / ENCODER_FOLDER
        if not tuned.is_dir():
            return base.digest
        about = {
            "name": f"{base.name}, tuned",
            "max_tokens": recipe.max_tokens,
            "base": base.digest,
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
                return self._artifacts.open("chat_model", digest)
        return None

    def _adopt(self, source: Path, name: str, digest: str) -> Artifact:
        log.info("base_model_adopted", name=name, source=str(source))
        scratch = self._settings.folder.new_scratch()
        scratch.mkdir(parents=True)
        try:
            spec = {"source": str(source.resolve()), "scratch": str(scratch.resolve())}
            made = self._trainer.run("pipelines.students.adopt", spec, scratch)
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
