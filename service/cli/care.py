"""The verbs that look after an installation: what is wrong, backups, a database made anew."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.errors import DataDamaged, ExitCode
from service.cli.help import examples
from service.cli.root import AsJson, app, chosen, print_json, tell

if TYPE_CHECKING:
    from service.care.restore import Restored

FREEZE_SECONDS = 3600.0
Backup = Annotated[Path, typer.Argument(metavar="BACKUP", help="A .tar file, or a folder.")]


@app.command(epilog=examples("flywheel doctor", "flywheel doctor --json"))
def doctor(
    all_findings: Annotated[bool, typer.Option("--all", help="Also list what is well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong: settings, folders, processes, records, broker, teacher, clocks.

    Nothing is changed and nothing is bought; it works with the learner running or not. Ends with
    22 when there is a problem. `flywheel check` is the part of it that only reads the settings.
    """
    from dataclasses import asdict

    from service.care.doctor import examine

    def ask(*path: str, **query: object) -> Any:
        return chosen.client().get(*path, **query)

    found = list(examine(chosen.settings(), ask, tell))
    tell("")
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        for one in found:
            if all_findings or one.level != "ok":
                print(f"{one.level}: {one.part}: {one.sentence}")
                if one.todo:
                    print(f"    {one.todo}")
        counts = Counter(one.level for one in found)
        print(
            f"{counts['problem']} problems, {counts['warning']} warnings, {counts['ok']} are well."
        )
    if any(one.level == "problem" for one in found):
        raise typer.Exit(int(ExitCode.PROBLEMS_FOUND))


@app.command(
    epilog=examples("flywheel backup support.tar", "flywheel backup /backups/monday --json")
)
def backup(
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="A new .tar file; else a new folder.")
    ],
    without_secrets: Annotated[
        bool,
        typer.Option("--without-secrets", help="Leave the internal key out. See the manual."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Save everything that cannot be rebuilt, while the learner runs or not.

    It holds people's prompts, and the installation's internal key: keep it as private as the
    data folder. Nothing is written over.
    """
    from dataclasses import asdict

    from service.care.backup import freeze_here_or_there, write_backup
    from storage.bundle import refuse_target

    settings = chosen.settings()
    refuse_target(target)
    tell("the database is copied")
    frozen = freeze_here_or_there(
        settings, lambda: chosen.client().post("backups", timeout_seconds=FREEZE_SECONDS)
    )
    manifest = write_backup(settings, target, frozen, secrets=not without_secrets, say=tell)
    tell("")
    size = sum(entry.bytes for entry in manifest.files.values())
    left_out = manifest.about["left_out"]
    if as_json:
        about = {**manifest.about, "dump": asdict(frozen.dump)}
        print_json({"backup": str(target), "files": len(manifest.files), "bytes": size, **about})
    else:
        serving = ", ".join(frozen.champions.values()) or "nothing yet"
        print(f"{target} holds {len(manifest.files):,} files, {size / 2**20:,.1f} MB.")
        print(
            f"{sum(frozen.dump.rows.values()):,} rows, {manifest.about['calls']:,} teacher calls."
        )
        print(f"Serving: {serving}.")
    if left_out:
        raise DataDamaged(
            "the backup is whole, but these artifacts were changed on disk and are not in it: "
            + "; ".join(left_out)
        )


@app.command(
    epilog=examples(
        "flywheel restore support.tar",
        "flywheel --data-dir /srv/flywheel restore support.tar",
        "flywheel restore support.tar --check",
    )
)
def restore(
    source: Backup,
    check: Annotated[
        bool, typer.Option("--check", help="Only verify the backup; write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fill the empty data folder from a backup. The learner then goes on from there."""
    from dataclasses import asdict

    from service.care.restore import check_backup, restore

    if check:
        reader = check_backup(source, tell)
        tell("")
        about = reader.manifest.about
        if as_json:
            print_json({"files": len(reader.manifest.files), "bytes": reader.size, **about})
        else:
            print(f"{source} is whole: {len(reader.manifest.files):,} files of {about['made_at']}.")
        return
    settings = chosen.settings()
    found = restore(settings, source, tell)
    tell("")
    if as_json:
        print_json(asdict(found))
    else:
        for line in _restored_lines(found, settings.data_dir):
            print(line)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)


@app.command(epilog=examples("flywheel rebuild", "flywheel rebuild --json"))
def rebuild(as_json: AsJson = False) -> None:
    """Make the database anew from topic, ledger, artifacts and decisions. The learner must be
    stopped.

    Nothing is bought again. The old database is kept aside. What cannot come back is counted.
    """
    from dataclasses import asdict

    from service.care.rebuild.run import rebuild

    found = rebuild(chosen.settings(), tell)
    tell("")
    if as_json:
        print_json(asdict(found))
        return
    counts = found.counts
    print(
        f"The database is made anew: {counts.get('events', 0):,} events, "
        f"{counts['samples']:,} samples, {counts['labels']:,} labels, "
        f"{counts['versions']:,} versions, {counts['decisions']:,} decisions."
    )
    if found.kept:
        print(f"The old one is in {found.kept}; remove it when you need it no more.")
    for sentence in found.lost:
        print(f"note: {sentence}", file=sys.stderr)


def _restored_lines(found: "Restored", data_dir: Path) -> list[str]:
    return [
        f"{data_dir} is as it was at {found.made_at}, and verified:",
        f"{found.rows:,} rows, {found.decisions:,} decisions, {found.calls:,} teacher calls, "
        f"{found.artifacts:,} artifacts.",
        f"Serving: {', '.join(found.champions.values()) or 'nothing yet'}.",
        "Start the learner: it reads the topic on from where the backup was.",
    ]
