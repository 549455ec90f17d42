"""The verb that puts recorded logs onto the topic."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.errors import ExitCode, SettingsError
from service.cli.help import examples
from service.cli.root import AsJson, app, chosen, print_json, tell

if TYPE_CHECKING:
    from service.care.import_log import ImportCounts, ImportPolicy
    from service.settings import Settings


Files = Annotated[
    list[Path], typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)
]
Mapped = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FIELD=COLUMN",
        help="Where a field lies, if not where its tool puts it; several times. Fields: text "
        "or messages, system, model, answer, label, user, time, id, metadata, metadata.NAME. "
        "A column may be a path: answer=output.0.content.",
        show_default=False,
    ),
]
Look = Annotated[
    bool, typer.Option("--look", help="Show the first records as understood; send nothing.")
]
Model = Annotated[
    str | None, typer.Option(help="For records that name no model.", show_default=False)
]
ForTask = Annotated[
    str | None,
    typer.Option(help="Count all for this task, whatever their model.", show_default=False),
]
Terms = Annotated[
    str | None,
    typer.Option(
        metavar="TERMS",
        help="The answers in the log are the teacher's, and these terms, which are those of "
        "teacher.terms, allow to train on them: they become labels.",
        show_default=False,
    ),
]
Producer = Annotated[
    str | None,
    typer.Option(
        help="Vouch for the column `label` as this one of ingest.trusted_producers: it is "
        "what the teacher answered.",
        show_default=False,
    ),
]


@app.command(
    "import",
    epilog=examples(
        "flywheel import prompts.jsonl --look",
        "flywheel import litellm.jsonl.gz --task support",
        "flywheel import log.csv --map text=query --map user=customer.id",
        "flywheel import batch_input.jsonl batch_output.jsonl",
        'flywheel import log.jsonl --teacher-answers "contract 2026-117, section 4"',
    ),
)
def import_log(
    files: Files,
    mapped: Mapped = None,
    look: Look = False,
    model: Model = None,
    task: ForTask = None,
    teacher_answers: Terms = None,
    producer: Producer = None,
    as_json: AsJson = False,
) -> None:
    """Put recorded logs onto the topic, whichever tool wrote them.

    Told apart by themselves: LiteLLM, Langfuse, OpenTelemetry GenAI, OpenAI's batches, stored
    completions and fine-tuning files, Helicone, NVIDIA's flywheel documents, request/response
    pairs, our own records, and rows with columns text or messages. JSON in lines or in an array,
    CSV and Parquet, also as .gz or UTF-16. Anything else: --map. Look first: --look.

    Ends with 23 where a record was not taken, or no task wants it, and says which and why.
    """
    settings = chosen.settings()
    policy = _policy(settings, mapped or [], model, task, teacher_answers, producer)
    if look:
        _look(files, policy, as_json)
        return
    from contextlib import closing

    from service.care.import_log import import_logs
    from service.topics.opening import open_writer

    with closing(open_writer(settings)) as writer:
        found = import_logs(files, writer, policy=policy, progress=_count_records)
    tell("")
    _tell_counts(found, as_json)
    if found.rejected or found.unclaimed or not found.sent:
        raise typer.Exit(int(ExitCode.NOT_ALL_TAKEN))


def _policy(
    settings: "Settings",
    mapped: list[str],
    model: str | None,
    task: str | None,
    terms: str | None,
    producer: str | None,
) -> "ImportPolicy":
    from service.care.import_log import ImportPolicy
    from service.care.logs.mapping import read_map
    from service.keys import open_keys

    signer, key = _signer(settings, producer, terms)
    token = settings.gateway.learner_token.get_secret_value()
    there = token or settings.folder.internal_key.exists()  # a look makes nothing
    return ImportPolicy(
        columns=read_map(mapped),
        model=model,
        task=task,
        teacher_model=settings.teacher.model or None,
        teacher_answers=terms is not None,
        producer=signer,
        key=key,
        tasks={name: settings.task_of(name) for name in settings.tasks},
        max_bytes=settings.ingest.max_record_bytes,
        user_salt=open_keys(settings.data_dir, token).users if there else b"not kept",
    )


def _signer(
    settings: "Settings", producer: str | None, terms: str | None
) -> tuple[str | None, bytes | None]:
    """Who vouches for the answers: a producer that is named, else this installation."""
    if terms is not None:
        _refuse_other_terms(settings, terms)
    if producer is not None:
        return producer, _key_of(settings, producer)
    if terms is None:
        return None, None
    from service.keys import IMPORT_PRODUCER, open_keys

    token = settings.gateway.learner_token.get_secret_value()
    return IMPORT_PRODUCER, open_keys(settings.data_dir, token).imports


def _refuse_other_terms(settings: "Settings", terms: str) -> None:
    """Labels are stored under `teacher.terms`: what allows to train on these has to be that."""
    recorded = settings.teacher.label_terms
    if recorded is None:
        raise SettingsError(
            "--teacher-answers: nothing may be trained on a teacher's answers until teacher.terms "
            "and teacher.terms_allow_training say so"
        )
    if terms.strip() != recorded.strip():
        raise SettingsError(
            f'--teacher-answers: the labels would be under teacher.terms, "{recorded}"; give '
            "these, or change the settings if others hold"
        )


def _key_of(settings: "Settings", producer: str) -> bytes:
    known = settings.ingest.trusted_producers
    if producer not in known:
        names = ", ".join(sorted(known)) or "none"
        raise SettingsError(f"ingest.trusted_producers has no {producer}; it has: {names}")
    return known[producer].get_secret_value().encode()


def _look(files: list[Path], policy: "ImportPolicy", as_json: bool) -> None:
    from service.care.import_look import look_lines, looked_at

    seen = looked_at(files, policy, _count_records)
    tell("")
    if as_json:
        print_json(seen)
    else:
        for line in look_lines(seen):
            print(line)
    if not any(one["problem"] is None for one in seen):
        raise typer.Exit(int(ExitCode.NOT_ALL_TAKEN))


def _tell_counts(found: "ImportCounts", as_json: bool) -> None:
    from dataclasses import asdict

    from service.terminal import import_lines

    told = asdict(found)
    if as_json:
        print_json(told)
        return
    for reject in found.rejects:
        print(f"line {reject.line}: {reject.reason}", file=sys.stderr)
    if found.rejected > len(found.rejects):
        print(f"... and {found.rejected - len(found.rejects):,} more", file=sys.stderr)
    print("\n".join(import_lines(told)))


def _count_records(records: int) -> None:
    tell(f"{records:,} records")
