"""The service as it is now: what a person on call looks at first."""

from blocks import (
    BAD_FROM_ONE,
    GOOD_FROM_ONE,
    GREEN,
    NEUTRAL,
    RED,
    TASK,
    WARN_FROM_ONE,
    Panel,
    Query,
    graph,
    number,
    rate,
)


def now() -> list[Panel]:
    """Numbers, and why somebody is needed."""
    requests = rate("flywheel_gateway_requests_total", where=TASK)
    served = rate("flywheel_gateway_requests_total", where=f'{TASK},served_by="student"')
    return [
        number(
            "Learner",
            "Whether Prometheus reaches the learner. Down: serving goes on, learning and new "
            "escalation leases do not; follow runbook LearnerDown.",
            Query("count(flywheel_topic_lag_records) or vector(0)", "learner"),
            steps=GOOD_FROM_ONE,
            words={"0": ("down", RED), "1": ("up", GREEN)},
        ),
        number(
            "Ingest",
            "Held: `flywheel status` says why; follow runbook IngestHeld, IngestHeldForDisk or "
            "IngestPausedOnPoison.",
            Query("max(flywheel_ingest_held)", "ingest"),
            steps=BAD_FROM_ONE,
            words={"0": ("reading", GREEN), "1": ("held", RED)},
        ),
        number(
            "Answered by the student",
            "Share of chat requests that the student answered. Low with a champion in place: "
            "compare trusted coverage and the reasons in 'Why the student was unsure'.",
            Query(f"({served} or vector(0)) / {requests}", "student"),
            unit="percentunit",
            steps=NEUTRAL,
            decimals=0,
        ),
        number(
            "Student in service",
            "The champion that the gateways hold. Nothing: requests pass through to the teacher; "
            "approve a version in the console when one waits.",
            Query(
                f'max by (version) (flywheel_gateway_student_info{{{TASK},role="champion"}})',
                "{{version}}",
            ),
            unit="none",
            steps=NEUTRAL,
            named=True,
        ),
        number(
            "Dead letters",
            "Records that could not be read. Above 0: `flywheel dead-letters list` has the "
            "reasons; repair the producer, then replay them.",
            Query("sum(flywheel_dead_letters)", "dead letters"),
            steps=WARN_FROM_ONE,
        ),
        number(
            "Champion's files",
            "Read byte by byte every hour. Damaged: do not restart the gateways; follow runbook "
            "ChampionDamaged.",
            Query("max(flywheel_champion_damaged)", "champion"),
            steps=BAD_FROM_ONE,
            words={"0": ("as approved", GREEN), "1": ("damaged", RED)},
        ),
        graph(
            "Why somebody is needed",
            "1 for each kind of occasion that there is now. Open the console: it says what to "
            "do about each. The kinds are those of notify.kinds.",
            Query("max by (kind) (flywheel_operator_needed)", "{{kind}}"),
            stacked=True,
            span=12,
        ),
        graph(
            "Notifications",
            "What the webhook took and what it did not. 'failed' or 'owed' for long: nobody is "
            "told; follow runbook NotificationsFailing.",
            Query(rate("flywheel_notifications_total", "kind, outcome"), "{{kind}} {{outcome}}"),
            Query("sum(flywheel_notifications_owed)", "owed"),
            span=12,
        ),
    ]
