"""The model card of a student version: what it is, learned from, and measured to be. Markdown.

The layout is Hugging Face's: front matter in YAML, then sections. No prompt's text is in it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.decide import ceiling_in_words, verdict_in_words
from pipelines.pool import pairs_in_words
from pipelines.recipes import Recipe
from pipelines.students.families import family_of
from pipelines.types import Estimate, Evaluation, GateReport, StudentVersion

TUNED = ", tuned"  # at the end of a tuned encoder's name
WORST_SEGMENTS = 5
RIVALS = {
    "candidate": "this version",
    "champion": "the champion",
    "base": "base model, untrained",
    "majority": "majority class",
    "nearest": "nearest neighbour",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card is written from. `dataset` and `base` are what their manifests say of them."""

    version: StudentVersion
    recipe: Recipe
    evaluation: Evaluation
    gate: GateReport
    champion: str | None  # its name
    dataset: Mapping[str, Any]
    base: Mapping[str, Any]
    teacher: str
    evaluated_at: datetime
    size_bytes: int
    latency_ms: float | None
    ceiling: Estimate | None = None
    labels_asked: int = 0


def model_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    parts = (
        _front_matter(facts),
        _what_it_is(facts),
        _data(facts),
        _training(facts),
        _evaluation(facts),
        _threshold(facts),
        _segments(facts),
        _limits(facts),
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def training_facts(training: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What a trainer said of its run, in plain words: (what, how much). For card and console."""
    return tuple((name, text) for name, text in _training_facts(training) if text)


def _training_facts(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    kept = training.get("calibration_examples")
    if examples := training.get("examples"):
        aside = f", {kept:,} of them kept back to calibrate" if kept else ""
        yield "Examples", f"{examples:,}{aside}"
    yield "Labels without an example", _listed(training.get("labels_without_example", ()))
    if looked_at := training.get("labels_looked_at"):
        doubtful = training.get("labels_doubtful", 0)
        yield "Doubtful labels", f"{doubtful:,} of {looked_at:,}; asked about again, as far as paid"
    if epochs := training.get("epochs"):
        steps = training.get("steps")
        yield "Passes over the examples", f"{epochs:g}" + (f", in {steps:,} steps" if steps else "")
    if tuned := training.get("weights_tuned"):
        yield "Weights tuned", f"{tuned:,}"
    yield "Arithmetic", str(training.get("precision", ""))
    if resumed := training.get("resumed_at_step"):
        yield "Resumed", f"at step {resumed:,}, after an interruption"
    if temperature := training.get("temperature"):
        yield "Temperature", f"{temperature:g}; scores are divided by it, to calibrate"
    yield "Served as", _served_as(training)
    yield "Seed", str(training.get("seed", ""))
    yield "Same weights when repeated", str(training.get("reproducible", ""))


def _served_as(training: Mapping[str, Any]) -> str:
    parity = training.get("int8_parity")
    if "int8" not in training:
        return ""
    if parity is None:
        return "32-bit numbers"
    same = f"{_percent(parity)} of the training texts keep their label"
    return f"int8: {same}" if training["int8"] else f"32-bit numbers: as int8 only {same}"


def _front_matter(facts: CardFacts) -> Iterator[str]:
    version, evaluation = facts.version, facts.evaluation
    agreement = evaluation.agreement["candidate"]
    yield "---"
    yield "license: other"
    yield f"license_name: {_yaml(facts.dataset.get('terms') or 'not recorded')}"
    yield f"library_name: {family_of(facts.recipe).library}"
    yield f"base_model: {_yaml(_base_name(facts))}"
    yield "pipeline_tag: text-classification"
    yield "tags:"
    yield from (f"- {_yaml(tag)}" for tag in ("flywheel", facts.recipe.name, version.task))
    yield "model-index:"
    yield f"- name: {_yaml(version.name)}"
    yield "  results:"
    yield "  - task:"
    yield "      type: text-classification"
    yield "    dataset:"
    yield f"      name: {_yaml(f'held-out prompts of {version.task}')}"
    yield "      type: private"
    yield f"      revision: {_yaml(evaluation.snapshot)}"
    yield "    metrics:"
    yield "    - type: accuracy"
    yield "      name: agreement with the teacher"
    yield f"      value: {agreement.value:.4f}"
    yield "      args:"
    yield f"        low: {agreement.low:.4f}"
    yield f"        high: {agreement.high:.4f}"
    yield f"        items: {agreement.n}"
    yield "---"


def _what_it_is(facts: CardFacts) -> Iterator[str]:
    version, labels = facts.version, facts.dataset.get("labels", ())
    latency = "" if facts.latency_ms is None else f", {facts.latency_ms:.1f} ms an answer"
    yield f"# {version.name}"
    yield ""
    yield (
        f"Student version {version.number} of the task `{version.task}`: reads a prompt and "
        f"answers with one of {len(labels)} labels and a calibrated confidence. It imitates a "
        f"teacher, {_text(facts.teacher) or 'of which no name is recorded'}."
    )
    yield ""
    yield f"- **Base model**: {_text(_base_name(facts))}"
    yield f"- **Recipe**: `{facts.recipe.name}`. {facts.recipe.summary}"
    yield f"- **Content hash**: `{version.student}`"
    yield f"- **Size**: {facts.size_bytes / 1e6:,.1f} MB{latency}, without the base model"
    yield f"- **Labels**: {', '.join(map(_code, labels))}"


def _data(facts: CardFacts) -> Iterator[str]:
    version, about = facts.version, facts.dataset
    yield "## Data"
    yield ""
    yield f"- **Terms of the teacher**: {_text(about.get('terms')) or 'not recorded'}"
    yield f"- **Dataset**: `{version.dataset}`"
    parent = about.get("parent")
    yield f"- **Follows on**: {f'`{parent}`' if parent else 'nothing; it is the first'}"
    yield (
        f"- **Examples**: {about.get('training', version.labels_trained):,} to train, "
        f"{about.get('held_out', 0):,} held out; {version.labels_bought:,} labels were bought"
    )
    dropped = {why: count for why, count in about.get("dropped", {}).items() if count}
    if dropped:
        left_out = ", ".join(f"{count:,} ({_text(why)})" for why, count in dropped.items())
        yield f"- **Left out**: {left_out}"


def _training(facts: CardFacts) -> Iterator[str]:
    version, recipe = facts.version, facts.recipe
    yield "## Training"
    yield ""
    trained = version.trained_at.astimezone(UTC)
    yield f"- **Trained**: {trained:%Y-%m-%d %H:%M} UTC, in {version.train_seconds:,.0f} s"
    if recipe.tunes:
        way = f"LoRA of rank {recipe.rank}" if recipe.rank else "every weight"
        yield (
            f"- **Recipe's settings**: {way}, peak rate {recipe.learning_rate:g}, batches of "
            f"{recipe.batch_size} x {recipe.accumulate}, texts up to {recipe.max_tokens} tokens"
        )
    for name, text in training_facts(version.training):
        yield f"- **{name}**: {_text(text)}"
    curve: Sequence[tuple[int, float]] = version.training.get("loss_curve", ())
    if len(curve) > 1:
        (first_step, first), (last_step, last) = curve[0], curve[-1]
        yield f"- **Loss**: {first:.3g} at step {first_step:,}, {last:.3g} at step {last_step:,}"


def _period(evaluation: Evaluation) -> str:
    if evaluation.period is None:
        return ""
    first, last = (moment.astimezone(UTC) for moment in evaluation.period)
    return f", asked between {first:%Y-%m-%d %H:%M} and {last:%Y-%m-%d %H:%M} UTC"


def _evaluation(facts: CardFacts) -> Iterator[str]:
    evaluation, gate = facts.evaluation, facts.gate
    yield "## Evaluation"
    yield ""
    yield (
        f"On {evaluation.items:,} held-out prompts that it was not trained on, one of each "
        f"near-duplicate group (snapshot `{evaluation.snapshot}`{_period(evaluation)}), "
        f"{facts.evaluated_at.astimezone(UTC):%Y-%m-%d}. Intervals are 95 %."
    )
    yield ""
    yield from _table(
        ("who", "agreement with the teacher", "this version against it"),
        [
            (
                _rival(facts, name),
                _estimate(evaluation.agreement[name]),
                _points(evaluation.difference.get(name)),
            )
            for name in RIVALS
            if name in evaluation.agreement
        ],
    )
    if facts.ceiling is not None:
        yield ""
        yield ceiling_in_words(facts.ceiling)
    yield ""
    if said := pairs_in_words(evaluation, facts.labels_asked):
        yield said
        yield ""
    found = verdict_in_words(gate.verdict, champion=facts.champion)
    yield f"Gate: {found}, candidate {gate.attempt} of the year."
    yield ""
    for check in gate.checks:
        yield f"- {'passed' if check.passed else '**failed**'}: {_text(check.sentence)}"


def _threshold(facts: CardFacts) -> Iterator[str]:
    threshold, error = facts.evaluation.threshold, facts.evaluation.calibration_error
    yield "## Threshold and calibration"
    yield ""
    if threshold.value is None:
        yield (
            f"No threshold could be certified for {_percent(threshold.target)}: "
            f"{_text(threshold.reason)}. Every prompt is unsure."
        )
    else:
        yield (
            f"Above a confidence of {threshold.value:.2f} it agrees with the teacher at least "
            f"{_percent(threshold.target)} of the time, with {_percent(threshold.confidence_level)}"
            f" confidence. {_percent(threshold.coverage)} of the traffic lies above it."
        )
    yield ""
    yield f"Expected calibration error: {_estimate(error)}."


def _segments(facts: CardFacts) -> Iterator[str]:
    slices = facts.evaluation.slices
    yield "## Worst segments"
    yield ""
    if not slices:
        yield "The held-out prompts have no segments."
        return
    yield from _table(
        ("segment", "prompts", "agreement", "against the champion"),
        [
            (
                _text(one.segment),
                f"{one.agreement.n:,}",
                _estimate(one.agreement),
                _points(one.difference),
            )
            for one in slices[:WORST_SEGMENTS]
        ],
    )
    if len(slices) > WORST_SEGMENTS:
        yield ""
        yield f"The other {len(slices) - WORST_SEGMENTS} segments are better."


def _limits(facts: CardFacts) -> Iterator[str]:
    max_tokens = facts.base.get("max_tokens", facts.recipe.max_tokens)
    yield "## Limits"
    yield ""
    yield (
        "- Every figure is agreement with the teacher. Whether the teacher is right, "
        "only people's labels can say."
    )
    yield (
        "- It answers with one of its labels, whatever it is asked. Prompts of a new kind "
        "get a label too; only a low confidence shows them, and not always."
    )
    yield "- The figures hold for prompts like the held-out ones. Traffic drifts; watch it live."
    yield f"- A text is cut after {max_tokens:,} tokens."
    if missing := facts.version.training.get("labels_without_example"):
        yield f"- These labels had no example and are not to be expected: {_text(_listed(missing))}"
    yield from (f"- {limit}" for limit in family_of(facts.recipe).limits)
    yield "- The license of the data decides who may use it: see the terms of the teacher."


def _base_name(facts: CardFacts) -> str:
    return str(facts.base.get("name", "unknown")).removesuffix(TUNED)


def _rival(facts: CardFacts, name: str) -> str:
    named = f", {facts.champion}" if name == "champion" and facts.champion else ""
    return RIVALS[name] + named


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell or '–' for cell in row)} |"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %".replace(".0 %", " %")


def _estimate(found: Estimate) -> str:
    return f"{_percent(found.value)} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _points(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.value:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def _text(value: object) -> str:
    """One line that Markdown takes for words: names and terms come from outside."""
    line = " ".join(str(value or "").split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{sign}" if sign in "\\`*|[]" else sign for sign in line)


def _code(value: object) -> str:
    return f"`{' '.join(str(value).split()).replace('`', '').replace('|', '')}`"


def _yaml(value: object) -> str:
    """A string of JSON is one of YAML."""
    return json.dumps(str(value), ensure_ascii=False)
