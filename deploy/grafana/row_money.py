"""What it costs and what it saves, in the currency of the settings' prices."""

from blocks import (
    GREEN,
    NEUTRAL,
    ORANGE,
    RED,
    TASK,
    WARN_FROM_ONE,
    Panel,
    Query,
    graph,
    number,
    rate,
)


def money() -> list[Panel]:
    """What it costs and what it saves. In the currency of the settings' prices."""
    return [
        number(
            "Saved",
            "Against asking the teacher for everything, since the first event. Falling: the "
            "student answers too little for what its labels cost; see "
            "'Trusted coverage and what was certified'.",
            Query(f"sum(flywheel_saved_money{{{TASK}}})", "saved"),
            steps=((None, ORANGE), (0, GREEN)),
            decimals=2,
            span=8,
        ),
        number(
            "Labels today",
            "Money spent on labels today (UTC), reserved amounts included. It ends at "
            "budget.label_money; raise that if 'Samples without a label' grows.",
            Query('sum(flywheel_label_spend_today{kind="money"})', "spent"),
            steps=NEUTRAL,
            decimals=2,
            span=8,
        ),
        number(
            "Escalations today",
            "Money spent on escalations today (UTC), leases included. It ends at "
            "budget.escalation_money: raise that if coverage is as certified.",
            Query('sum(flywheel_escalation_spend_today{kind="money"})', "spent"),
            steps=NEUTRAL,
            decimals=2,
            span=8,
        ),
        number(
            "Calls for labels rest",
            "After failures in a row the teacher is left alone for a while. Resting for long: "
            "follow runbook TeacherBreakerOpen.",
            Query("max(flywheel_teacher_breaker_open)", "resting"),
            steps=WARN_FROM_ONE,
            words={"0": ("no", GREEN), "1": ("resting", ORANGE)},
            span=12,
        ),
        number(
            "Unknown outcomes",
            "Teacher calls that may have been charged and are held for a decision: "
            "`flywheel unknown list`, then release or drop them.",
            Query("sum(flywheel_teacher_unknown_outcomes)", "held"),
            steps=WARN_FROM_ONE,
            span=12,
        ),
        graph(
            "Budgets used",
            "Share of today's ceilings. At 1 labelling rests, or the student answers what it is "
            "unsure of, until midnight UTC; runbooks LabelBudgetNearlySpent and "
            "EscalationBudgetNearlySpent.",
            Query(
                "sum by (kind) (flywheel_label_spend_today)"
                " / (sum by (kind) (flywheel_label_budget_today) > 0)",
                "labels: {{kind}}",
            ),
            Query(
                "sum by (kind) (flywheel_escalation_spend_today)"
                " / (sum by (kind) (flywheel_escalation_budget_today) > 0)",
                "escalations: {{kind}}",
            ),
            unit="percentunit",
            steps=((None, GREEN), (0.9, RED)),
        ),
        graph(
            "Spend and saving",
            "Labels and escalations of today beside the money saved since the first event. "
            "Spend above budget cannot happen; if it does, stop the learner and report it.",
            Query('sum(flywheel_label_spend_today{kind="money"})', "labels today"),
            Query('sum(flywheel_label_budget_today{kind="money"})', "label budget"),
            Query('sum(flywheel_escalation_spend_today{kind="money"})', "escalations today"),
            Query(f"sum(flywheel_saved_money{{{TASK}}})", "saved"),
            floor=None,
        ),
        graph(
            "Calls of the day",
            "Label and escalation calls of today. Escalations climb fast: trusted coverage fell, "
            "or an app sends much more; see 'Requests by who answered'.",
            Query('sum(flywheel_label_spend_today{kind="calls"})', "label calls"),
            Query('sum(flywheel_escalation_spend_today{kind="calls"})', "escalation calls"),
        ),
        graph(
            "Price of one answer",
            "Money for one label and for one escalation, of today. Rises without new prices: "
            "prompts grew; look at what apps send, or lower teacher.max_tokens.",
            Query(
                'sum(flywheel_label_spend_today{kind="money"})'
                ' / (sum(flywheel_label_spend_today{kind="calls"}) > 0)',
                "label",
            ),
            Query(
                'sum(flywheel_escalation_spend_today{kind="money"})'
                ' / (sum(flywheel_escalation_spend_today{kind="calls"}) > 0)',
                "escalation",
            ),
        ),
        graph(
            "Answers, by who is paid",
            "Answers of the student cost nothing more. The teacher's share rises: trusted "
            "coverage fell; see the dashboard of quality.",
            Query(rate("flywheel_events_total", "served_by", where=TASK), "{{served_by}}"),
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Calls for labels, by how they ended",
            "refused: the teacher's key or model is wrong. unknown: held for `flywheel unknown`. "
            "rate_limited for long: lower teacher.max_concurrency. Runbook TeacherFailing. "
            "no label: paid, and outside the label set, cut or empty; see `flywheel status`.",
            Query(rate("flywheel_teacher_calls_total", "outcome"), "{{outcome}}"),
            Query(
                rate("flywheel_teacher_unusable_answers_total", "task", where=TASK),
                "no label of {{task}}",
            ),
            unit="reqps",
        ),
        graph(
            "Escalations",
            "no_lease: the escalation budget is spent or the learner is away; runbook "
            "EscalationsWithoutLease.",
            Query(rate("flywheel_gateway_escalations_total", "outcome", where=TASK), "{{outcome}}"),
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Calls left in the lease",
            "Escalations that a gateway may still make without asking. 0 with unsure traffic: "
            "escalations have stopped; runbook EscalationsWithoutLease.",
            Query("flywheel_gateway_lease_remaining_calls", "{{instance}}"),
        ),
    ]
