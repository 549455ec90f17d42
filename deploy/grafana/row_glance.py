"""At a glance: is it serving, is it good, is anyone needed?"""

from blocks import (
    BAD_FROM_ONE,
    GOOD_FROM_ONE,
    GREEN,
    NEUTRAL,
    ORANGE,
    RED,
    TASK,
    WARN_FROM_ONE,
    Panel,
    Query,
    number,
    rate,
)


def at_a_glance() -> list[Panel]:
    """Is it serving, is it good, is anyone needed?"""
    requests = rate("flywheel_gateway_requests_total", where=TASK)
    failed = rate("flywheel_gateway_requests_total", where=f'{TASK},outcome="failed"')
    served = rate("flywheel_gateway_requests_total", where=f'{TASK},served_by="student"')
    return [
        number(
            "Gateways answering",
            "Gateways that Prometheus reaches. 0: apps get no answers; restart the gateway and "
            "follow runbook GatewayDown.",
            Query("count(flywheel_gateway_resident_generations) or vector(0)", "gateways"),
            steps=GOOD_FROM_ONE,
        ),
        number(
            "Learner",
            "Whether Prometheus reaches the learner. Down: serving goes on, learning and new "
            "escalation leases do not; follow runbook LearnerDown.",
            Query("count(flywheel_topic_lag_records) or vector(0)", "learner"),
            steps=GOOD_FROM_ONE,
            words={"0": ("down", RED), "1": ("up", GREEN)},
        ),
        number(
            "Failed requests",
            "Share of chat requests that got an error. Above 1 %: look at 'Calls of the teacher "
            "that failed' and follow runbook GatewayFailing.",
            Query(f"({failed} or vector(0)) / {requests}", "failed"),
            unit="percentunit",
            steps=((None, GREEN), (0.01, ORANGE), (0.05, RED)),
            decimals=1,
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
            "The champion that the gateways hold. Nothing: requests pass through to the teacher "
            "until a version is approved in the console.",
            Query(
                f'max by (version) (flywheel_gateway_student_info{{{TASK},role="champion"}})',
                "{{version}}",
            ),
            unit="none",
            steps=NEUTRAL,
            named=True,
        ),
        number(
            "Alerts firing",
            "Alerts of deploy/prometheus/alerts.yml, without those that only inform. Above 0: "
            "open Prometheus' alert page; each alert names its runbook.",
            Query(
                'count(ALERTS{alertstate="firing",service="flywheel",severity!="info"})'
                " or vector(0)",
                "firing",
            ),
            steps=BAD_FROM_ONE,
        ),
        number(
            "Agreement of what was served",
            "Agreement with the teacher of the answers that the student gave, lowest task. Below "
            "the task's target with its whole interval: follow runbook AgreementBelowTarget.",
            Query(f'min(flywheel_agreement{{{TASK},scope="served",bound="value"}})', "agreement"),
            unit="percentunit",
            steps=NEUTRAL,
            decimals=1,
        ),
        number(
            "Trusted coverage",
            "Share of the traffic that the student may answer, lowest task. Falling: traffic "
            "changed; a retrain should start by itself, else follow runbook CoverageLost.",
            Query(f'min(flywheel_trusted_coverage{{{TASK},bound="value"}})', "coverage"),
            unit="percentunit",
            steps=NEUTRAL,
            decimals=0,
        ),
        number(
            "Versions that wait for you",
            "Versions that passed the gate and need an operator: `flywheel status`, then approve "
            "or reject in the console.",
            Query(f"sum(flywheel_versions_waiting{{{TASK}}}) or vector(0)", "waiting"),
            steps=WARN_FROM_ONE,
        ),
        number(
            "Unknown outcomes",
            "Teacher calls that may have been charged and are held for a decision: "
            "`flywheel unknown list`, then release or drop them.",
            Query("sum(flywheel_teacher_unknown_outcomes)", "held"),
            steps=WARN_FROM_ONE,
        ),
        number(
            "Dead letters",
            "Records that could not be read. Above 0: `flywheel dead-letters list` has the "
            "reasons; repair the producer, then replay them.",
            Query("sum(flywheel_dead_letters)", "dead letters"),
            steps=WARN_FROM_ONE,
        ),
        number(
            "Ingest",
            "Held: paused by an operator, by poison or by a full disk. `flywheel status` says "
            "which; follow runbook IngestHeld.",
            Query("max(flywheel_ingest_held)", "ingest"),
            steps=BAD_FROM_ONE,
            words={"0": ("reading", GREEN), "1": ("held", RED)},
        ),
    ]
