"""Whether the wheel turns: samples, labels, training, gate."""

from blocks import TASK, Panel, Query, graph, rate


def learning() -> list[Panel]:
    """From a chosen event to a judged version."""
    return [
        graph(
            "Samples by reason",
            "Events chosen for the teacher or the training set. None for long: ingest is held, or "
            "the label budget is spent; see 'Ingest' and 'Budgets used'.",
            Query(rate("flywheel_samples_total", "reason", where=TASK), "{{reason}}"),
            unit="eps",
            stacked=True,
        ),
        graph(
            "Labels by source",
            "Labels that came in. 'bought' at 0 while samples wait: the teacher fails or the "
            "budget is spent; see 'Calls for labels, by how they ended'.",
            Query(rate("flywheel_labels_total", "source", where=TASK), "{{source}}"),
            unit="eps",
            stacked=True,
        ),
        graph(
            "Samples without a label",
            "pending should not grow for long; held ones wait for `flywheel unknown`; failed ones "
            "have their reason in the log.",
            Query(f"sum by (status) (flywheel_samples_waiting{{{TASK}}})", "{{status}}"),
        ),
        graph(
            "Labels that a dataset can be made of",
            "Must grow until a first student waits. held_out counts groups: below "
            "gate.min_groups nothing can be promoted; raise sampling.held_out_rate.",
            Query(f"sum by (side) (flywheel_labels_stored{{{TASK}}})", "{{side}}"),
        ),
        graph(
            "Training",
            "1 while a trainer runs, with its progress. Standing still for long: the trainer's "
            "heartbeat or memory limit will end it; runbook TrainingFailed.",
            Query("max(flywheel_training_running)", "running"),
            Query("max(flywheel_training_progress_ratio)", "progress"),
            unit="percentunit",
            ceiling=1,
        ),
        graph(
            "Training speed and loss",
            "Much slower than before: other work on the host, or trainer.threads is low. A loss "
            "(of recipes that tune) that does not fall: lower recipes.NAME.learning_rate.",
            Query("max(flywheel_training_examples_per_second)", "examples a second"),
            Query("max(flywheel_training_loss)", "loss"),
        ),
        graph(
            "Training time",
            "Time left of the run, and how long the last one took. Near trainer.time_limit: raise "
            "it, or lower the size of the dataset.",
            Query("max(flywheel_training_seconds_left)", "left"),
            Query(
                f"max by (task) (flywheel_training_last_seconds{{{TASK}}})", "last run: {{task}}"
            ),
            unit="s",
        ),
        graph(
            "Training runs",
            "Since the learner's start. failed rises: runbook TrainingFailed; the console has "
            "the reason of each run.",
            Query(f"sum by (outcome) (flywheel_training_runs_total{{{TASK}}})", "{{outcome}}"),
        ),
        graph(
            "Versions that wait for you",
            "They passed the gate and need an operator: look at the report in the console, then "
            "approve or reject. Waiting for a day: runbook VersionWaits.",
            Query(f"sum by (task) (flywheel_versions_waiting{{{TASK}}})", "{{task}}"),
        ),
        graph(
            "Gate verdicts and decisions",
            "Since the learner's start. Only insufficient_evidence: more held-out labels are "
            "needed. worse again and again: look at the report's flips in the console.",
            Query(
                f"sum by (verdict) (flywheel_gate_verdicts_total{{{TASK}}})", "gate: {{verdict}}"
            ),
            Query(f"sum by (action) (flywheel_decisions_total{{{TASK}}})", "operator: {{action}}"),
        ),
    ]
