"""Whether the wheel turns: samples, labels, jobs, training, gate, swaps."""

from blocks import TASK, Panel, Query, graph, quantile, rate


def loop() -> list[Panel]:
    """Whether the wheel turns: samples, labels, jobs, training, gate, swaps."""
    return [
        graph(
            "Samples by reason",
            "Events chosen for the teacher or the training set. None for long: ingest is held, or "
            "the label budget is spent.",
            Query(rate("flywheel_samples_total", "reason", where=TASK), "{{reason}}"),
            unit="eps",
            stacked=True,
        ),
        graph(
            "Labels by source",
            "Labels that came in. 'bought' at 0 while samples wait: the teacher fails or the "
            "budget is spent; see the money row.",
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
            "gate.min_groups nothing can be promoted.",
            Query(f"sum by (side) (flywheel_labels_stored{{{TASK}}})", "{{side}}"),
        ),
        graph(
            "Since each job's last success",
            "Beyond three times a job's interval: `flywheel status` has its last error; runbook "
            "JobNotFresh.",
            Query(
                "time() - max by (exported_job) (flywheel_job_last_success_timestamp_seconds)",
                "{{exported_job}}",
            ),
            unit="s",
        ),
        graph(
            "Firings of the schedule",
            "failed or missed: the log names the job's error; runbook JobNotFresh. nothing is "
            "normal: the page says why a job had nothing to do.",
            Query(
                rate("flywheel_job_ticks_total", "exported_job, outcome"),
                "{{exported_job}} {{outcome}}",
            ),
            unit="ops",
        ),
        graph(
            "How long jobs take",
            "Longer than their interval: firings are missed; lengthen schedule.*, or find what "
            "slows them (the teacher, the disk).",
            Query(quantile(0.95, "flywheel_job_seconds", "exported_job"), "{{exported_job}} p95"),
            unit="s",
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
            "Gate verdicts and decisions",
            "Since the learner's start. Only insufficient_evidence: more held-out labels are "
            "needed. worse again and again: look at the report's flips in the console.",
            Query(
                f"sum by (verdict) (flywheel_gate_verdicts_total{{{TASK}}})", "gate: {{verdict}}"
            ),
            Query(f"sum by (action) (flywheel_decisions_total{{{TASK}}})", "operator: {{action}}"),
        ),
        graph(
            "Swaps",
            "Since each gateway's start. Anything but swapped, rolled_back and withdrawn is a "
            "refusal: the old student serves on; runbook SwapRefused.",
            Query("sum by (outcome) (flywheel_gateway_swaps_total)", "{{outcome}}"),
        ),
        graph(
            "Time to swap",
            "From noticing a publication to serving it: the mean since each gateway's start. "
            "Seconds: the encoder was loaded anew, or the disk is slow.",
            Query(
                "sum(flywheel_gateway_swap_seconds_sum) / sum(flywheel_gateway_swap_seconds_count)",
                "mean",
            ),
            unit="s",
        ),
        graph(
            "Students in memory",
            "Champions, those kept for a rollback, those that drain. Growing with each swap: "
            "generations leak; restart the gateway and report it.",
            Query("flywheel_gateway_resident_generations", "{{instance}}"),
        ),
        graph(
            "Versions in use",
            "1 for each version, by what it is. The learner's champion without a gateway's: "
            "runbook GatewayBehindChampion.",
            Query(
                f"max by (version, role) (flywheel_student_info{{{TASK}}})",
                "learner: {{version}} {{role}}",
            ),
            Query(
                f"sum by (version, role) (flywheel_gateway_student_info{{{TASK}}})",
                "gateways: {{version}} {{role}}",
            ),
            unit="none",
            span=24,
        ),
    ]
