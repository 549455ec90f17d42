"""What candidate, champion and rivals say to the items that judge: a child answers them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from pipelines.errors import ArtifactDamaged
from pipelines.rows import held_out_row
from pipelines.types import Answers, HeldOutItem, LabelledAnswer, StudentVersion
from pipelines.work import (
    ANSWERS_FILE,
    GOLDEN_FILE,
    AnswerFacts,
    AnsweringStudent,
    AnswerWork,
    Input,
)
from service.learner.workshop import Workshop
from storage.artifacts import Artifact
from storage.reports import Golden


def answer_items(
    shop: Workshop,
    students: Mapping[str, StudentVersion | None],
    items: Sequence[HeldOutItem],
    kept: Sequence[HeldOutItem],
    scratch: Path,
) -> tuple[dict[str, Answers], list[Golden], AnswerFacts]:
    """The answers of all, by name; those of candidate and champion go on with what is kept."""
    version = students["candidate"]
    assert version is not None
    encoder = _encoder_of(shop, version)
    work = AnswerWork(
        students={name: _answering(shop, one) for name, one in students.items() if one is not None},
        dataset=Input("dataset", version.dataset),
        items=tuple(map(held_out_row, items)),
        labels=shop.tasks[version.task].labels,
        # A head on the frozen encoder shares its cached vectors; so does the nearest rival.
        encoder=Input("encoder", encoder.digest),
        max_tokens=int(encoder.about["max_tokens"]),
        kept=tuple(map(held_out_row, kept)),
    )
    facts = msgspec.convert(shop.executor.run(work, scratch), AnswerFacts)
    return (*_read_answers(scratch), facts)


def _answering(shop: Workshop, version: StudentVersion) -> AnsweringStudent:
    base = shop.artifacts.about(version.base_kind, version.base)
    return AnsweringStudent(
        family=version.family,
        student=Input("student", version.student),
        base=Input(version.base_kind, version.base),
        max_tokens=base.get("max_tokens"),
    )


def _encoder_of(shop: Workshop, version: StudentVersion) -> Artifact:
    """The encoder that it reads with; where that is none the one of the settings."""
    if version.base_kind != "encoder":
        return shop.encoder
    return shop.artifacts.look("encoder", version.base)


def _read_answers(scratch: Path) -> tuple[dict[str, Answers], list[Golden]]:
    """What the child wrote, checked for its form."""
    try:
        rows = msgspec.json.decode(
            (scratch / ANSWERS_FILE).read_bytes(), type=dict[str, list[LabelledAnswer]]
        )
        golden = msgspec.json.decode((scratch / GOLDEN_FILE).read_bytes(), type=list[Golden])
    except (OSError, msgspec.MsgspecError, json.JSONDecodeError) as error:
        raise ArtifactDamaged(f"the answers of the evaluation cannot be read: {error}") from error
    answers = {
        name: Answers(
            name=name,
            labels=tuple(one.label for one in given),
            confidences=tuple(one.confidence for one in given),
            distances=tuple(one.distance for one in given),
        )
        for name, given in rows.items()
    }
    return answers, golden
