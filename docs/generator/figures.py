"""Tables of what the benchmarks measured, as their results files have it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from generator.places import ROOT


def loop_figures() -> Iterator[str]:
    """The loop benchmark's table, as its results file has it."""
    found = json.loads((ROOT / "benchmarks" / "results" / "loop.json").read_text())
    yield "| version | labels bought | trained on | accuracy | trusted coverage at approval |"
    yield "|---|---:|---:|---:|---:|"
    for point in found["points"]:
        number = point["version"].split("-")[-2]
        yield (
            f"| {number} | {point['labels_bought']:,} | {point['labels_trained']:,} | "
            f"{point['accuracy']:.1%} | {point['coverage']:.0%} |"
        )
    yield ""
    yield (
        f"{found['prompts']:,} prompts, seed {found['seed']}, {found['machine']['cores']} cores, "
        f"{found['figures']['minutes']:g} minutes for the whole run: benchmarks/results/loop.json."
    )


def recipe_figures() -> Iterator[str]:
    """The recipes' table, a line for each number of labels, as the results file has it."""
    found = json.loads((ROOT / "benchmarks" / "results" / "recipes.json").read_text())
    yield (
        "| recipe | labels | accuracy | above `head`, for each seed (95 % interval) "
        "| processor minutes | peak MB | published MB | ms |"
    )
    yield "|---|---:|---:|---|---:|---:|---:|---:|"
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for point in found["points"]:
        groups.setdefault((point["recipe"], point["labels"]), []).append(point)
    order = list(dict.fromkeys(recipe for recipe, _ in groups))
    for recipe, labels in sorted(groups, key=lambda key: (order.index(key[0]), key[1])):
        yield _recipe_row(recipe, labels, groups[recipe, labels])
    machine, seeds = found["machine"], ", ".join(map(str, found["seeds"]))
    yield ""
    yield (
        f"Means over the seeds {seeds} where they are measured; {machine['cores']} cores "
        f"({machine['processor']}, shared with other work): benchmarks/results/recipes.json."
    )
    missing: dict[str, list[str]] = {}
    for name, labels, seed in found["missing"]:
        missing.setdefault(f"{name} {labels:,}", []).append(str(seed))
    if missing:
        parts = (f"{what} (seed {', '.join(which)})" for what, which in missing.items())
        yield f"Not measured yet: {'; '.join(parts)}."


def _recipe_row(recipe: str, labels: int, points: list[dict[str, Any]]) -> str:
    def mean(name: str) -> float:
        return fmean(point[name] for point in points)

    above = [
        f"{100 * gain['value']:+.1f} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        for point in points
        if (gain := point["to_head"])
    ]
    cost = "| | | "  # of the chat model used directly: nothing was trained
    if points[0]["trained"]:
        cost = (
            f"| {mean('processor_minutes'):.1f} | {mean('peak_memory_mb'):,.0f} "
            f"| {mean('size_mb'):,.1f}"
        )
    return (
        f"| {recipe} | {labels:,} | {mean('accuracy'):.1%} | {'; '.join(above)} "
        f"{cost} | {mean('latency_p50_ms'):,.0f} |"
    )


class Aim(NamedTuple):
    """A figure of a results file, what it means, and what it should be."""

    name: str
    meaning: str
    aim: str = ""
    unit: str = ""


# Of each results file, in the order of the page.
AIMS: Mapping[str, Sequence[Aim]] = {
    "ingest": (
        Aim("ratio_to_poll", "ingest, as a share of the rate of merely polling", ">= 0.40"),
        Aim("ratio_to_poll_default_rates", "the same, at the sampling rates of the settings"),
        Aim("ingest_per_second", "ingest", unit="events/s"),
        Aim("ingest_floor_per_second", "merely polling", unit="records/s"),
        Aim("embedded_write_to_sqlite", "the embedded topic, of plain SQLite: writing"),
        Aim("embedded_read_to_sqlite", "the embedded topic, of plain SQLite: reading"),
    ),
    "answer": (
        Aim("ratio_to_bare", "an answer over HTTP, to the bare parts", "<= 2.5"),
        Aim("p50_ms", "an answer over HTTP, half are quicker", unit="ms"),
        Aim("bare_p50_ms", "the bare parts", unit="ms"),
        Aim("throughput_gain_16", "answers a second, 16 clients to one", ">= 1.4"),
        Aim("p99_to_p50_16", "16 clients: p99 to p50", "<= 4"),
    ),
    "footprint": (
        Aim("learner_mb", "the learner, resident", "< 300", "MB"),
        Aim("gateway_mb", "the gateway with a student, resident", "< 350", "MB"),
        Aim("gateway_ready_s", "a gateway is ready, with its champion", "<= 3", "s"),
        Aim("help_s", "`flywheel --help`", "<= 0.4", "s"),
    ),
    "retrain": (
        Aim("cold_s", "retrain on 10,000 labels, all texts to embed", "<= 60", "s"),
        Aim("cached_s", "the same, embedded before", "<= 10", "s"),
        Aim("grown_s", "with a hundred texts more", unit="s"),
    ),
    "passthrough": (
        Aim("ratio_to_litellm", "what the gateway adds, to what LiteLLM adds", "<= 0.20"),
        Aim("gateway_adds_ms_1", "the gateway adds, one client", unit="ms"),
        Aim("litellm_adds_ms_1", "LiteLLM adds, one client", unit="ms"),
        Aim("gateway_adds_ms_16", "the gateway adds, 16 clients", unit="ms"),
        Aim("litellm_adds_ms_16", "LiteLLM adds, 16 clients", unit="ms"),
    ),
    "day": (
        Aim("size_mb", "a day at 100 events/s, in the database", unit="MB"),
        Aim("slowest_page_p50_ms", "the slowest page of the console, p50", "<= 100", "ms"),
        Aim("slowest_page_max_ms", "the slowest page of the console, at worst", unit="ms"),
    ),
}


def speed_figures() -> list[str]:
    """A line for each figure, with what it should be, and what it was measured on."""
    lines = ["| | measured | aim |", "|---|---:|---|"]
    about = []
    for name, aims in AIMS.items():
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if not path.exists():
            lines += [f"| {aim.meaning} | not measured yet | {aim.aim} |" for aim in aims]
            continue
        found = json.loads(path.read_text())
        for aim in aims:
            value = f"{found['figures'][aim.name]:,g} {aim.unit}".strip()
            lines.append(f"| {aim.meaning} | {value} | {aim.aim} |")
        machine = found["machine"]
        about.append(
            f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gb']} GB, "
            f"commit {found['commit']}: benchmarks/results/{name}.json."
        )
    return [*lines, "", *(f"- {line}" for line in about)]


# Of referee.json, in the order of the page. Shares have no unit.
REFEREE: Sequence[Aim] = (
    Aim("false_promotions_year", "a year in which a student that is no better passes", "<= 5 %"),
    Aim(
        "false_promotions_year_naive_100_fresh",
        "the same by the rule: a higher score on 100 fresh messages",
    ),
    Aim(
        "false_promotions_year_naive_200_head_to_head",
        "the same by the rule: wins at least half of 200 head to head",
    ),
    Aim("power_2_points_150_labels", "a student 2 points better passes with 150 labels", ">= 80 %"),
    Aim(
        "days_2_points_1000_a_day",
        "a student 2 points better passes, at 1,000 prompts a day, within",
        unit="days",
    ),
    Aim("days_5_point_drop", "agreement 5 points lower is noticed within", "<= 2 days", "days"),
    Aim("days_2_point_drop", "agreement 2 points lower is noticed within", "<= 35 days", "days"),
    Aim(
        "days_5_point_drop_1000_a_day",
        "agreement 5 points lower is noticed, at 1,000 prompts a day, within",
        unit="days",
    ),
    Aim(
        "days_2_point_drop_1000_a_day",
        "agreement 2 points lower is noticed, at 1,000 prompts a day, within",
        unit="days",
    ),
    Aim("false_promise_alarms_year", "a year half a point above the target, with an alarm"),
    Aim("served_ever_outside", "live agreement is ever outside its interval", "<= 5 %"),
    Aim("served_ever_outside_few_audits", "the same, when few served audits came", "<= 5 %"),
    Aim("certificates_broken_iid", "a threshold breaks its promise, of all tries", "<= 5 %"),
    Aim(
        "certificates_broken_issued_at_minimum",
        "the same, of those issued with the fewest messages that the gate accepts",
    ),
    Aim(
        "certificates_broken_zipf", "the same, where few prompts are most of the traffic", "<= 5 %"
    ),
    Aim("certificates_broken_zipf_distinct", "the same, if each group counted once"),
    Aim("certificates_slide", "the same, issued while agreement slid by 3 points in 30 days"),
    Aim("certificates_slide_distinct", "the same, if each group counted once"),
    Aim("certificates_slide_days", "until audits raise the alarm then", unit="days"),
    Aim("certificates_drop", "the same, issued 5 days after agreement fell by 5 points"),
    Aim("certificates_drop_distinct", "the same, if each group counted once"),
    Aim("certificates_drop_days", "until audits raise the alarm then", unit="days"),
    Aim("false_rollbacks_year", "a year in which an equal student is rolled back", "<= 1 %"),
    Aim(
        "audit_minutes_late_40_a_second",
        "the latest of a hundred audits has its label, at 40 events a second, within",
        "<= 1 minute",
        "minutes",
    ),
)


def referee_figures() -> Iterator[str]:
    """What our statistics did in worlds whose truth is known, with what they should do."""
    path = ROOT / "benchmarks" / "results" / "referee.json"
    if not path.exists():
        yield "Not measured yet."
        return
    found = json.loads(path.read_text())
    yield "| | found | 95 % interval | worlds | aim |"
    yield "|---|---:|---:|---:|---|"
    for aim in REFEREE:
        world = found["worlds"].get(aim.name)
        if world is None:
            yield f"| {aim.meaning} | not measured yet | | | {aim.aim} |"
            continue
        value, low, high = (_shown(world[name], aim.unit) for name in ("value", "low", "high"))
        yield f"| {aim.meaning} | {value} | {low} to {high} | {world['trials']:,} | {aim.aim} |"
    machine, commits = found["machine"], {world["commit"] for world in found["worlds"].values()}
    yield ""
    yield (
        f"Times are medians. Seed {found['seed']}, {machine['cores']} cores "
        f"({machine['processor']}), commit {', '.join(sorted(commits))}; each world in words: "
        "benchmarks/results/referee.json."
    )


# Of blocks.json, in the order of the page. Shares have no unit.
BLOCKS: Sequence[Aim] = (
    Aim("wrong_served_worst_500", "wrong answers in the worst 500 prompts in a row", "<= 25 %"),
    Aim("wrong_served", "wrong answers of all prompts", "<= 8 %"),
    Aim("wrong_of_served_alone", "the same, of those that the student answered alone"),
    Aim("teacher_share", "prompts that the teacher answered"),
    Aim(
        "labels_to_recover_median",
        "labels of a block until as much is trusted as before",
        "<= 300",
        "labels",
    ),
    Aim("wrong_served_worst_500_without_labels", "the worst 500, when nothing is learned"),
    Aim("wrong_served_without_labels", "wrong answers of all, when nothing is learned"),
    Aim("teacher_share_without_labels", "prompts that the teacher answered then"),
)


def blocks_figures() -> Iterator[str]:
    """What topics that arrive in turn did to the student, with what they may."""
    path = ROOT / "benchmarks" / "results" / "blocks.json"
    if not path.exists():
        yield "Not measured yet."
        return
    found = json.loads(path.read_text())
    yield "| | found | aim |"
    yield "|---|---:|---|"
    for aim in BLOCKS:
        yield f"| {aim.meaning} | {_shown(found['figures'][aim.name], aim.unit)} | {aim.aim} |"
    yield ""
    yield f"Seed {found['seed']}, commit {found['commit']}: benchmarks/results/blocks.json."


def _shown(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if unit else f"{100 * value:.3g} %"


# Of chaos.json, in the order of the page.
FAULTS: Sequence[Aim] = (
    Aim("kills", "kills", "200"),
    Aim("events", "events that the topic acknowledged", "200,000"),
    Aim("lost", "of these, lost", "0"),
    Aim("duplicated", "counted twice", "0"),
    Aim("answers_bought", "answers bought"),
    Aim("answers_bought_twice", "bought twice", "0"),
    Aim("unknown_outcomes", "calls with an unknown outcome, held"),
    Aim("unknown_outcomes_at_most", "calls that may have been in flight at the kills"),
    Aim("requests_answered", "requests answered by the gateway"),
    Aim("unapproved_versions_served", "versions served that nobody approved", "0"),
    Aim("captures_lost", "answers that a killed gateway had not yet put on the topic"),
    Aim("capture_lost_ms_max", "the oldest of them, before the kill", "<= 100", "ms"),
    Aim("serving_again_p50_s", "serving again after a kill, p50", "", "s"),
    Aim("serving_again_max_s", "serving again, at worst", "<= 3", "s"),
    Aim("ingest_again_p50_s", "ingesting again after a kill, p50", "", "s"),
    Aim("ingest_again_max_s", "ingesting again, at worst", "<= 5", "s"),
    Aim("orphans_gone_max_s", "children gone after a killed supervisor, at worst", "", "s"),
    Aim("fuzzed_records", "fuzzed records", "100,000"),
    Aim("fuzzed_unaccounted", "of these, neither event nor dead letter", "0"),
    Aim("planted_bugs", "bugs planted", ">= 12"),
    Aim("planted_bugs_caught", "of these, caught", "all"),
)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,g}"


def fault_figures() -> list[str]:
    """What the chaos run found, with what it should have."""
    path = ROOT / "benchmarks" / "results" / "chaos.json"
    if not path.exists():
        return ["Not measured yet."]
    found = json.loads(path.read_text())
    lines = ["| | found | aim |", "|---|---:|---|"]
    for aim in FAULTS:
        value = found["figures"].get(aim.name)
        shown = "not measured yet" if value is None else f"{_plain(value)} {aim.unit}".strip()
        lines.append(f"| {aim.meaning} | {shown} | {aim.aim} |")
    machine = found["machine"]
    lines += [
        "",
        f"Seed {found['seed']}, {machine['cores']} cores ({machine['processor']}), commit "
        f"{found['commit']}: benchmarks/results/chaos.json.",
    ]
    if "load_average" in found:
        lines.append(
            f"{found['minutes']:g} minutes over the {found['topic']} topic; the load average at "
            f"its end was {found['load_average'][1]:g}."
        )
    return lines


def planted_bugs() -> list[str]:
    """Each planted bug and the test that catches it."""
    path = ROOT / "benchmarks" / "results" / "chaos.json"
    planted = json.loads(path.read_text()).get("planted", {}) if path.exists() else {}
    if not planted:
        return ["Not measured yet."]
    rows = (f"| {name} | `{test}` |" for name, test in planted.items())
    return ["| bug | caught by |", "|---|---|", *rows]
