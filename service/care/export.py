"""A student version as a folder in Hugging Face's layout, for use outside the flywheel."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import ArtifactDamaged, Refused
from storage.artifacts import MANIFEST, Artifacts, Kind
from storage.folder import DataFolder
from storage.reports import CARD_FILE

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def export_version(version: Mapping[str, Any], card: str, data_dir: Path, folder: Path) -> None:
    """Write the verified files of a version, its base's tokenizer, and its card.

    `version` is what the learner's API says of it. A head gets its encoder too; adapters name
    their base model, which is not copied. Raises `Refused` for a folder that holds something.
    """
    refuse_to_overwrite(folder)
    kind: Kind = version["base_kind"]
    root = DataFolder(data_dir).artifacts
    if not root.is_dir():
        raise Refused(
            f"the artifacts of {version['name']} are not in {data_dir}: export on the host of "
            "the learner, with its --data-dir"
        )
    artifacts = Artifacts(root)
    student = artifacts.open("student", version["student"])
    base = artifacts.open(kind, version["base"])
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(base.path.rglob("*")):
        wanted = kind == "encoder" or path.name in TOKENIZER_FILES
        if wanted and path.is_file() and path.name != MANIFEST:
            _copy(path, folder / path.relative_to(base.path))
    for path in sorted(student.path.rglob("*")):  # its manifest too: it vouches for these files
        if path.is_file():
            _copy(path, folder / path.relative_to(student.path))
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def refuse_to_overwrite(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} is there already, and holds something: name a new folder")


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        raise ArtifactDamaged(f"{target.name} is in the student and in its base model")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
