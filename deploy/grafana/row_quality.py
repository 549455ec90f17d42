"""Quality and coverage of one task. Grafana repeats the row for each task."""

from blocks import GREEN, ORANGE, TASK, Panel, Query, dashed, graph, with_band


def quality() -> list[Panel]:
    """How good the student of one task is. The row is repeated for each task."""
    coverage = graph(
        "Trusted coverage and what was certified",
        "Share of the traffic above the threshold, with its interval. Whole band below the "
        "certified line: traffic changed; follow runbook CoverageLost.",
        Query(f'flywheel_trusted_coverage{{{TASK},bound="value"}}', "trusted coverage"),
        Query(f'flywheel_trusted_coverage{{{TASK},bound="low"}}', "low"),
        Query(f'flywheel_trusted_coverage{{{TASK},bound="high"}}', "high"),
        Query(f"flywheel_certified_coverage{{{TASK}}}", "certified"),
        unit="percentunit",
        ceiling=1,
        span=12,
    )
    return [
        dashed(with_band(coverage, "low", "high"), "certified"),
        _agreement(
            "served",
            "Agreement of what the student served",
            "The promise: at least the task's target. The band is anytime-valid and wide at "
            "first. Whole band below the target: roll back, then runbook AgreementBelowTarget.",
        ),
        _agreement(
            "assessed",
            "Agreement over all assessed traffic",
            "What the student would get right if it answered everything. Falling: it needs "
            "labels of the new traffic; see 'Labels by source' and 'Samples by reason'.",
        ),
        graph(
            "Cascade threshold",
            "Confidence from which the student's answer is served. -1: nothing is trusted and "
            "every request escalates; runbook NoThresholdCertified. 'audits' or 'mix' at 1: it was "
            "raised by itself; runbook ThresholdGuarded. 'novel' at 1: much is new to it.",
            Query(f"flywheel_cascade_threshold{{{TASK}}}", "threshold"),
            Query(f"flywheel_threshold_guarded{{{TASK}}}", "{{kind}}"),
            unit="percentunit",
            floor=-1,
            ceiling=1,
            span=6,
        ),
        graph(
            "Audit answers",
            "What the agreement is estimated from. 'unanswered' growing: the teacher refuses some "
            "texts or the budget is spent; runbook AuditAnswersMissing.",
            Query(f"flywheel_audit_labels{{{TASK}}}", "answered"),
            Query(f"flywheel_audit_unanswered{{{TASK}}}", "unanswered"),
            span=6,
        ),
        graph(
            "Answered unsure, with nobody to ask",
            "Share of the last day's requests. Nothing is promised of these answers. Above the "
            "dashed line: raise the escalation budget; runbook ForcedAnswers.",
            Query(f"flywheel_forced_share{{{TASK}}}", "share"),
            unit="percentunit",
            steps=((None, GREEN), (0.01, ORANGE)),
            span=12,
        ),
        dashed(_self_agreement(), "target"),
        graph(
            "Parked prompts",
            "Prompts to which the teacher gave two answers: nobody is trained with them. "
            "Growing: see `flywheel parked list`, and say what is right.",
            Query(f"flywheel_labels_parked{{{TASK}}}", "parked"),
            span=12,
        ),
        graph(
            "Feedback",
            "Verdicts that apps reported, since each gateway's start. Many bad ones with a high "
            "agreement: the teacher itself is wrong; look at the samples.",
            Query(f"sum by (verdict) (flywheel_gateway_feedback_total{{{TASK}}})", "{{verdict}}"),
            span=12,
        ),
    ]


def _self_agreement() -> Panel:
    def line(bound: str) -> str:
        return f'flywheel_teacher_self_agreement{{{TASK},bound="{bound}"}}'

    panel = graph(
        "The teacher's agreement with itself",
        "How often it says the same when it is asked again: the ceiling of every agreement. Whole "
        "band below the target: lower the target, or make the teacher steadier.",
        Query(line("value"), "the same again"),
        Query(line("low"), "low"),
        Query(line("high"), "high"),
        Query(f"flywheel_agreement_target{{{TASK}}}", "target"),
        unit="percentunit",
        floor=None,
        ceiling=1,
        span=12,
    )
    return with_band(panel, "low", "high")


def _agreement(scope: str, title: str, about: str) -> Panel:
    def line(bound: str) -> str:
        return f'flywheel_agreement{{{TASK},scope="{scope}",bound="{bound}"}}'

    panel = with_band(
        graph(
            title,
            about,
            Query(line("value"), "agreement"),
            Query(line("low"), "low"),
            Query(line("high"), "high"),
            Query(f"flywheel_agreement_target{{{TASK}}}", "target"),
            unit="percentunit",
            floor=None,
            ceiling=1,
            span=12,
        ),
        "low",
        "high",
    )
    return dashed(panel, "target")
