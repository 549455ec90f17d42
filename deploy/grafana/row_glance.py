"""One row for everybody: is it serving, is it good, is anyone needed?"""

from blocks import (
    BAD_FROM_ONE,
    GOOD_FROM_ONE,
    GREEN,
    ORANGE,
    RED,
    TASK,
    WARN_FROM_ONE,
    Panel,
    Query,
    linked,
    number,
    rate,
)

AGREEMENT = f'flywheel_agreement{{{TASK},scope="served",bound="high"}}'
TARGET = f"flywheel_agreement_target{{{TASK}}}"
COVERAGE = f'flywheel_trusted_coverage{{{TASK},bound="high"}}'


def at_a_glance() -> list[Panel]:
    """Six numbers: two for each question."""
    requests = rate("flywheel_gateway_requests_total", where=TASK)
    failed = rate("flywheel_gateway_requests_total", where=f'{TASK},outcome="failed"')
    return [
        linked(
            number(
                "Serving: gateways",
                "Gateways that Prometheus reaches. 0: apps get no answers; restart the gateway "
                "and follow runbook GatewayDown.",
                Query("count(flywheel_gateway_resident_generations) or vector(0)", "gateways"),
                steps=GOOD_FROM_ONE,
            ),
            "health",
        ),
        linked(
            number(
                "Serving: failed requests",
                "Share of chat requests that got an error. Above 1 %: look at 'Calls of the "
                "teacher that failed' and follow runbook GatewayFailing.",
                Query(f"({failed} or vector(0)) / {requests}", "failed"),
                unit="percentunit",
                steps=((None, GREEN), (0.01, ORANGE), (0.05, RED)),
                decimals=1,
            ),
            "health",
        ),
        linked(
            number(
                "Good: agreement above the target",
                "Upper end of the live agreement less the task's target, lowest task. Below 0 "
                "the promise is broken: roll back, then follow runbook AgreementBelowTarget.",
                Query(f"min(max by (task) ({AGREEMENT}) - on (task) {TARGET})", "above target"),
                unit="percentunit",
                steps=((None, RED), (0, GREEN)),
                decimals=1,
            ),
            "quality",
        ),
        linked(
            number(
                "Good: coverage kept",
                "Upper end of the trusted coverage as a share of what was certified, lowest "
                "task. Below 95 %: the traffic changed; follow runbook CoverageLost.",
                Query(
                    f"min(max by (task) ({COVERAGE})"
                    f" / on (task) (flywheel_certified_coverage{{{TASK}}} > 0))",
                    "kept",
                ),
                unit="percentunit",
                steps=((None, RED), (0.9, ORANGE), (0.95, GREEN)),
                decimals=0,
            ),
            "quality",
        ),
        number(
            "Needed: somebody",
            "Occasions on which the learner needs a person. Above 0: open its console, whose "
            "first page says what for; 'Why somebody is needed' has the kinds.",
            Query("sum(flywheel_operator_needed)", "occasions"),
            steps=WARN_FROM_ONE,
            words={"0": ("nobody", GREEN)},
        ),
        number(
            "Needed: alerts firing",
            "Alerts of deploy/prometheus/alerts.yml, without those that only inform. Above 0: "
            "open Prometheus' alert page; each alert names its runbook.",
            Query(
                'count(ALERTS{alertstate="firing",service="flywheel",severity!="info"})'
                " or vector(0)",
                "firing",
            ),
            steps=BAD_FROM_ONE,
            words={"0": ("none", GREEN)},
        ),
    ]
