"""What the read verbs print: the API's answers as lines of text."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from textwrap import wrap
from typing import Any

from pipelines.decide import verdict_in_words

Data = Mapping[str, Any]


def status_lines(status: Data) -> Iterator[str]:
    """The overview: what waits first, then the tasks, then the jobs."""
    for need in status["needs"]:
        yield f"{'!' if need['urgent'] else '-'} {need['sentence']}"
        if need["text"]:
            yield from wrap(need["text"], 100, initial_indent="  ", subsequent_indent="  ")
    if status["needs"]:
        yield ""
    for task in status["tasks"]:
        yield from _task_lines(task)
        yield ""
    progress = status["progress"]
    if progress:
        yield progress_line(progress)
        yield ""
    teacher = status["teacher"]
    scripted = " (scripted: not a real model)" if teacher["scripted"] else ""
    yield f"teacher  {teacher['model'] or 'not set'}{scripted}"
    rows = [_job_row(job, _moment(status["at"])) for job in status["jobs"]]
    yield ""
    yield from table(("job", "last", "", "next"), rows)


def import_lines(found: Data) -> Iterator[str]:
    """What became of a log's records, and what its answers were taken for."""
    yield f"{found['sent']:,} of {found['lines']:,} records are on the topic"
    for shape, records in found["shapes"].items():
        yield f"  read as {shape}: {records:,}"
    if found["undated"]:
        yield f"{found['undated']:,} have no time: they count as of now"
    if found["other"]:
        yield f"{found['other']:,} others are no model calls"
    if found["past"]:
        why = ", ".join(f"{reason} ({records:,})" for reason, records in found["past"].items())
        yield f"{sum(found['past'].values()):,} are such that no student may answer them: {why}"
    for model, records in found["unclaimed"].items():
        yield (
            f"no task claims the model {printable(model, 60)}: {records:,} records count for "
            "nothing. Name it in `models` of a task, or say --task"
        )
    if found["not_labels"]:
        yield f"{found['not_labels']:,} of the teacher's answers are none of the task's labels"
    taken = []
    if found["labelled"]:
        taken.append(f"{found['labelled']:,} as the teacher's, which are labels")
    if found["answered"]:
        taken.append(f"{found['answered']:,} as the app's, which are none")
    if taken and found["unanswered"]:
        taken.append(f"{found['unanswered']:,} records without")
    yield f"answers: {', '.join(taken) or 'none'}"


def versions_lines(versions: Sequence[Data]) -> Iterator[str]:
    """One line a version, newest first."""
    rows = [
        (
            f"{one['task']}-v{one['number']}",
            one["state"].replace("_", " "),
            one["recipe"],
            estimate(one["agreement"]),
            percent(one["coverage"]),
            f"{one['labels_trained']:,}",
            when(one["trained_at"]),
        )
        for one in versions
    ]
    if not rows:
        yield "No version yet."
        return
    heads = ("version", "state", "recipe", "agreement", "coverage", "labels", "trained")
    yield from table(heads, rows)


def report_lines(detail: Data) -> Iterator[str]:
    """A version with what the gate found."""
    version, report = detail["version"], detail["report"]
    yield f"{version['name']}: {version['state'].replace('_', ' ')}"
    yield version["sentence"]
    yield f"Recipe {version['recipe']}, {version['labels_trained']:,} labels"
    if report is None:
        return
    evaluation, gate = report["evaluation"], report["gate"]
    yield ""
    yield f"Agreement with the teacher on {evaluation['items']:,} held-out items"
    yield from table(
        (), [(f"  {name}", estimate(value)) for name, value in evaluation["agreement"].items()]
    )
    if detail["ceiling"]:
        yield detail["ceiling"]
    yield ""
    found = verdict_in_words(gate["verdict"], champion=report["champion"])
    yield f"Gate: {found} (candidate {gate['attempt']} of the year)"
    for check in gate["checks"]:
        yield f"  {'passed' if check['passed'] else 'FAILED'}  {check['sentence']}"
    yield ""
    yield threshold_sentence(evaluation["threshold"])
    if evaluation["slices"]:
        yield ""
        yield "Worst segments"
        worst = [(f"  {s['segment']}", estimate(s["agreement"])) for s in evaluation["slices"][:5]]
        yield from table((), worst)
    bad = [flip for flip in evaluation["flips"] if flip["negative"]]
    if bad:
        yield ""
        yield f"Right before, wrong now ({len(bad)} in all)"
        for flip in bad[:5]:
            yield f"  {printable(flip['text'], 100)}"
            yield f"      teacher {flip['label']}, before {flip['before']}, now {flip['after']}"


def dead_letters_lines(letters: Sequence[Data]) -> Iterator[str]:
    rows = [
        (
            f"{one['topic']}/{one['partition']}/{one['offset']}",
            when(one["received_at"]),
            "replayed" if one["replayed_at"] else "",
            printable(one["reason"], 60),
        )
        for one in letters
    ]
    if not rows:
        yield "No dead letters."
        return
    yield from table(("record", "received", "", "reason"), rows)


def parked_lines(found: Sequence[Data]) -> Iterator[str]:
    rows = [
        (
            printable(one["event_id"], 40),
            one["first"],
            one["second"] or "no label",
            printable(one["text"], 60),
        )
        for one in found
    ]
    if not rows:
        yield "The teacher contradicts itself about no prompt."
        return
    yield from table(("event", "first answer", "second answer", "prompt"), rows)


def unknown_lines(held: Sequence[Data]) -> Iterator[str]:
    rows = [
        (one["key"], when(one["sent_at"]), f"{one['reserved']:.4f}", printable(one["detail"], 50))
        for one in held
    ]
    if not rows:
        yield "No call is held."
        return
    yield from table(("key", "sent", "reserved", "what happened"), rows)


def threshold_sentence(threshold: Data) -> str:
    """The cascade threshold, as a promise."""
    target = percent(threshold["target"])
    if threshold["value"] is None:
        return f"No threshold can be certified for {target}: {threshold['reason']}"
    return (
        f"Above confidence {threshold['value']:.2f} it agrees with the teacher at least {target} "
        f"of the time ({percent(threshold['confidence_level'])} confidence): "
        f"{percent(threshold['coverage'])} of the prompts."
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as they need to be."""
    every = [heads, *rows] if heads else list(rows)
    widths = [max(len(row[i]) for row in every) for i in range(len(every[0]))] if every else []
    for row in every:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %".replace(".0 %", " %")


def estimate(found: Data | None) -> str:
    """`94.1 % (91.4 to 96.1)`."""
    if found is None:
        return "-"
    return f"{percent(found['value'])} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def when(text: str | None) -> str:
    """A moment in the terminal's time zone."""
    return "-" if text is None else _moment(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def printable(text: str, length: int) -> str:
    """One line without control characters: what users wrote must not drive the terminal."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def _task_lines(task: Data) -> Iterator[str]:
    figures = task["figures"]
    yield f"{task['task']}  {task['serving']}"
    yield f"  {task['quality']}"
    yield (
        f"  agreement of what it served {estimate(figures['served_agreement'])}, trusted coverage "
        f"{estimate(figures['trusted_coverage'])}"
    )
    if missing := figures.get("served_missing"):
        yield (
            f"  {missing['count']:,} audits without a label yet: all wrong, the interval begins at "
            f"{percent(missing['worst'])}; all right, it ends at {percent(missing['best'])}"
        )
    if forced := figures.get("forced_share"):
        yield f"  {forced:.1%} of the last day's requests were answered unsure, nobody to ask"
    if task["ceiling"]:
        yield f"  {task['ceiling']}"
    yield (
        f"  labels: {figures['labels_bought']:,} bought, {figures['labels_given']:,} given; "
        f"spent today {figures['spend_today']:.2f} of {figures['budget_today']:.2f}, "
        f"saved {figures['saved_total']:.2f}"
    )


def progress_line(progress: Data) -> str:
    line = f"{progress['phase']}: step {progress['step']:,} of {progress['total']:,}"
    if progress.get("loss") is not None:
        line += f", loss {progress['loss']:.3g}"
    if progress["examples_per_second"]:
        line += f", {progress['examples_per_second']:,.0f} examples/s"
    if progress["seconds_left"] is not None:
        line += f", {progress['seconds_left']:.0f} s left"
    return line


def _job_row(job: Data, now: datetime) -> tuple[str, str, str, str]:
    last = job["last"]
    ago = f"{duration((now - _moment(last['started_at'])).total_seconds())} ago" if last else "-"
    did = f"{last['outcome']}: {printable(last['detail'], 90)}" if last else "not yet"
    if job["paused"]:
        return job["job"], ago, did, "paused"
    coming = job["next_at"]
    seconds = (_moment(coming) - now).total_seconds() if coming else None
    return job["job"], ago, did, f"in {duration(seconds)}" if seconds is not None else "-"


def duration(seconds: float) -> str:
    """`5 s`, `3 min`, `2 h`, `4 d`."""
    size = max(0.0, seconds)
    for limit, unit in ((60, "s"), (3600, "min"), (86_400, "h")):
        if size < limit:
            return f"{size / {'s': 1, 'min': 60, 'h': 3600}[unit]:.0f} {unit}"
    return f"{size / 86_400:.0f} d"


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
