"""What the gateways answer, and how fast."""

from blocks import TASK, Panel, Query, graph, mean, quantile, rate


def serving() -> list[Panel]:
    """What the gateways do."""
    return [
        graph(
            "Requests by who answered",
            "Chat requests a second. A fall to nothing: the apps, their network or the gateway; "
            "compare 'Serving: gateways'.",
            Query(
                rate("flywheel_gateway_requests_total", "served_by", where=TASK), "{{served_by}}"
            ),
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Requests by outcome",
            "How requests ended. 'failed' rises: the teacher or the network. 'unsure' rises: "
            "no lease is left, see 'Escalations'.",
            Query(rate("flywheel_gateway_requests_total", "outcome", where=TASK), "{{outcome}}"),
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Time to answer",
            "Whole requests as the gateway sees them. The student's p95 above 100 ms: compare "
            "'Time in the model'; if that is low the host is short of processors.",
            Query(
                quantile(0.5, "flywheel_gateway_request_seconds", "served_by"),
                "{{served_by}} p50",
            ),
            Query(
                quantile(0.95, "flywheel_gateway_request_seconds", "served_by"),
                "{{served_by}} p95",
            ),
            Query(
                quantile(0.99, "flywheel_gateway_request_seconds", "served_by"),
                "{{served_by}} p99",
            ),
            unit="s",
        ),
        graph(
            "Time in the model",
            "One batch through encoder and head, or one text in an engine. Near the time to "
            "answer: the model is the limit; give the gateway more threads or add a gateway.",
            Query(quantile(0.5, "flywheel_gateway_model_seconds"), "p50"),
            Query(quantile(0.95, "flywheel_gateway_model_seconds"), "p95"),
            unit="s",
        ),
        graph(
            "Texts in a batch",
            "Above 1 under concurrent clients. At the top of its scale all the time: the gateway "
            "is full; add one.",
            Query(mean("flywheel_gateway_model_batch_texts"), "mean"),
            floor=1,
        ),
        graph(
            "Why the student was unsure",
            "below_threshold is the cascade at work. no_threshold: nothing could be certified, "
            "follow runbook NoThresholdCertified. empty and too_long: look at what apps send.",
            Query(rate("flywheel_gateway_unsure_total", "reason", where=TASK), "{{reason}}"),
            unit="reqps",
            stacked=True,
        ),
        graph(
            "Texts that the student failed on",
            "The teacher was asked instead. crashed: a defect, or a text that its model cannot "
            "take. engine: the chat model's process ended or hangs. busy: too many texts wait "
            "for it. Follow runbook StudentFailing.",
            Query(
                rate("flywheel_gateway_student_failures_total", "reason", where=TASK), "{{reason}}"
            ),
            Query(rate("flywheel_gateway_engine_failures_total", "reason"), "engine {{reason}}"),
            unit="reqps",
        ),
        graph(
            "Engines of causal students",
            "Processes that answer, one for each chat model, and the texts at them. Texts near 64 "
            "for long: the chat model is too slow for the traffic; add a gateway or serve a head.",
            Query("flywheel_gateway_engines", "{{instance}} engines"),
            Query("flywheel_gateway_engine_queue_texts", "{{instance}} texts"),
        ),
        graph(
            "Calls of the teacher that failed",
            "By kind. refused: the key or the model name is wrong. rate_limited: ask for a higher "
            "limit. Others: the teacher is down; follow runbook TeacherFailingForGateway.",
            Query(rate("flywheel_gateway_upstream_errors_total", "kind"), "{{kind}}"),
            unit="reqps",
        ),
        graph(
            "Turned away, or beyond the student",
            "Requests without a key or malformed, and claimed requests that ask for tools and "
            "the like. Many: talk to the app that sends them; the reason says what it does.",
            Query(rate("flywheel_gateway_rejected_total", "reason"), "turned away: {{reason}}"),
            Query(
                rate("flywheel_gateway_unsupported_total", "reason", where=TASK),
                "to the teacher: {{reason}}",
            ),
            Query(rate("flywheel_gateway_truncated_total", where=TASK), "read in part"),
            unit="reqps",
        ),
    ]
