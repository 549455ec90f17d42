"""The settings, and the only reader of the environment.

Command line over environment (`FLYWHEEL_TEACHER__API_KEY`) over secret files over
`flywheel.toml` over the defaults below. Unknown keys are errors.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from pipelines.errors import SettingsError
from pipelines.recipes import RECIPES, Recipe, RecipeName
from pipelines.students.bases import check_base, installed_base
from pipelines.types import Task
from service.sections import (
    BudgetSettings,
    DatasetSettings,
    EncoderSettings,
    GateSettings,
    GatewaySettings,
    IngestSettings,
    KafkaSettings,
    LearnerSettings,
    NotifySettings,
    RecipeSettings,
    RetentionSettings,
    RollbackSettings,
    SamplingSettings,
    ScheduleSettings,
    TaskSettings,
    TeacherSettings,
    TrainerSettings,
    TriggerSettings,
    is_loopback,
)
from storage.folder import DataFolder

CONFIG_FILE = "flywheel.toml"
PREFIX = "FLYWHEEL_"
# Read by this module beside the settings themselves.
CONFIG_VARIABLE = "FLYWHEEL_CONFIG"
SECRETS_VARIABLE = "FLYWHEEL_SECRETS_DIR"


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
    )

    data_dir: Path = Path("flywheel-data")  # everything that is kept, secrets included
    kafka: KafkaSettings = KafkaSettings()
    ingest: IngestSettings = IngestSettings()
    teacher: TeacherSettings = TeacherSettings()
    budget: BudgetSettings = BudgetSettings()
    sampling: SamplingSettings = SamplingSettings()
    dataset: DatasetSettings = DatasetSettings()
    gate: GateSettings = GateSettings()
    rollback: RollbackSettings = RollbackSettings()
    trigger: TriggerSettings = TriggerSettings()
    trainer: TrainerSettings = TrainerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    retention: RetentionSettings = RetentionSettings()
    gateway: GatewaySettings = GatewaySettings()
    learner: LearnerSettings = LearnerSettings()
    notify: NotifySettings = NotifySettings()
    encoder: EncoderSettings = EncoderSettings()
    recipes: dict[RecipeName, RecipeSettings] = {}
    tasks: dict[str, TaskSettings] = {}

    def recipe(self, name: RecipeName) -> Recipe:
        """The recipe with what the settings change of it."""
        changed = self.recipes.get(name, RecipeSettings()).model_dump(exclude_none=True)
        changed.pop("base_model", None)
        return replace(RECIPES[name], **changed)

    def base_model(self, name: RecipeName) -> Path:
        """What a recipe tunes. Raises `SettingsError` where it cannot be loaded from."""
        recipe = self.recipe(name)
        chosen = self.recipes.get(name, RecipeSettings()).base_model
        base = chosen.expanduser() if chosen else installed_base(recipe)
        check_base(recipe, base)
        return base

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "head" in self.recipes:
            raise ValueError("recipes.head: a head has nothing to tune; its encoder is [encoder]")
        whole = self.recipes.get("encoder-full")
        if whole is not None and whole.rank is not None:
            raise ValueError("recipes.encoder-full.rank: it tunes every weight; see encoder-lora")
        claimed: dict[str, str] = {}
        for name, task in self.tasks.items():
            if not re.fullmatch(r"[a-z][a-z0-9_-]{0,30}", name):
                raise ValueError(
                    f"tasks.{name}: a task's name has lower-case letters, digits, '-' and '_'"
                )
            for model in task.models:
                if model in claimed:
                    raise ValueError(f"model '{model}' is claimed by {claimed[model]} and {name}")
                claimed[model] = name
        if not is_loopback(self.gateway.host) and not self.gateway.keys:
            raise ValueError(
                f"gateway.host = '{self.gateway.host}' is reachable from outside: set "
                "gateway.keys (what apps present as bearer token), or listen on 127.0.0.1"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        if folder := os.environ.get(SECRETS_VARIABLE):
            sources.append(
                NestedSecretsSettingsSource(
                    file_secret_settings,
                    secrets_dir=folder,
                    secrets_prefix="",
                    secrets_nested_delimiter="__",
                )
            )
        if settings_cls.model_config.get("toml_file"):
            sources.append(TomlConfigSettingsSource(settings_cls))
        return tuple(sources)

    def claims(self) -> Mapping[str, str]:
        """Task by the model name that an app sends."""
        return {model: name for name, task in self.tasks.items() for model in task.models}

    def task_of(self, name: str) -> Task:
        """The task as the core knows it."""
        task = self.tasks[name]
        return Task(
            name=name,
            models=tuple(task.models),
            labels=tuple(task.labels),
            answer_pointer=task.answer_pointer,
            reads=task.reads,
            instructions=task.instructions,
            segment_by=task.segment_by,
        )

    @property
    def folder(self) -> DataFolder:
        """The paths in the data folder."""
        return DataFolder(self.data_dir)

    @property
    def learner_url(self) -> str:
        """Where this host's processes reach the learner."""
        return self.gateway.learner_url or f"http://127.0.0.1:{self.learner.port}"

    @property
    def gateway_url(self) -> str:
        """Where this host's processes reach the gateway."""
        return self.learner.gateway_url or f"http://127.0.0.1:{self.gateway.port}"


def load_settings(path: Path | None = None, **overrides: Any) -> Settings:
    """Read and check the settings, or raise `SettingsError` with every problem in it.

    `path` None means `FLYWHEEL_CONFIG`, else `flywheel.toml` in the current folder if there.
    """
    named = path or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    if named is not None and not named.is_file():
        raise SettingsError(f"there is no settings file at {named}")
    found = named or (Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None)
    _refuse_unknown_variables()
    _refuse_unknown_secrets()

    # pydantic-settings takes its files from the class, so each load makes its own.
    class Loaded(Settings):
        model_config = SettingsConfigDict(toml_file=found)

    try:
        return Loaded(**overrides)
    except ValidationError as error:
        raise SettingsError(_explain(error, found)) from None
    except ValueError as error:  # TOML syntax
        raise SettingsError(f"{found}: {error}") from None


def _refuse_unknown_variables() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {CONFIG_VARIABLE, SECRETS_VARIABLE}
    for name, value in os.environ.items():
        top = name.upper().split("__")[0]
        if name.upper().startswith(PREFIX) and top not in known and not _is_link(name, value):
            raise SettingsError(
                f"the environment variable {name} is not a setting; "
                f"`flywheel check` prints all settings"
            )


def _is_link(name: str, value: str) -> bool:
    """Kubernetes tells every container about every Service, one called flywheel-... too."""
    if re.search(r"_SERVICE_(HOST|PORT)(_|$)|_PORT_\d+_[A-Z]+_(PROTO|PORT|ADDR)$", name):
        return True
    is_address = re.match(r"(tcp|udp|sctp)://", value) is not None
    return is_address and re.search(r"_PORT(_\d+_[A-Z]+)?$", name) is not None


def _refuse_unknown_secrets() -> None:
    if not os.environ.get(SECRETS_VARIABLE):
        return
    folder = Path(os.environ[SECRETS_VARIABLE])
    if not folder.is_dir():
        raise SettingsError(f"{SECRETS_VARIABLE} names {folder}, and there is no such folder")
    for path in folder.iterdir():
        top = path.name.lower().split("__")[0]
        if path.is_file() and not path.name.startswith(".") and top not in Settings.model_fields:
            raise SettingsError(
                f"the secret file {path} is not called like a setting, as for example "
                "teacher__api_key is"
            )


def _explain(error: ValidationError, path: Path | None) -> str:
    lines = [f"the settings{f' in {path}' if path else ''} cannot be used:"]
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "settings"
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {where}: there is no such setting")
        else:
            lines.append(f"  {where}: {problem['msg'].removeprefix('Value error, ')}")
    lines.append("`flywheel check` prints all settings with their present values.")
    return "\n".join(lines)
