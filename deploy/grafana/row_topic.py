"""The way of the events: from the gateways onto the topic, and into the database."""

from blocks import GREEN, RED, TASK, Panel, Query, graph, quantile, rate


def topic() -> list[Panel]:
    """What is captured, read and stored."""
    return [
        graph(
            "Capture",
            "Events made durable on the topic. 'dropped' must stay 0: those events are lost; "
            "follow runbook CaptureDropping.",
            Query(rate("flywheel_gateway_captured_total"), "captured"),
            Query(rate("flywheel_gateway_capture_dropped_total", "reason"), "dropped: {{reason}}"),
            unit="eps",
        ),
        graph(
            "Events waiting for the topic",
            "Growing: the topic is slow or down. At gateway.capture_buffer events are lost; "
            "follow runbook CaptureBacklog.",
            Query("flywheel_gateway_capture_queue_events", "{{instance}}"),
            steps=((None, GREEN), (5000, RED)),
        ),
        graph(
            "Events read, by who answered",
            "What the learner reads from the topic. Less than the gateways capture for long: see "
            "'Records not read yet'.",
            Query(
                rate("flywheel_events_total", "served_by", where='task=~"$task|unclaimed"'),
                "{{served_by}}",
            ),
            Query(rate("flywheel_events_unassessed_total", where=TASK), "not assessed"),
            Query(
                rate("flywheel_requests_past_student_total", "reason", where=TASK),
                "past the student: {{reason}}",
            ),
            unit="eps",
        ),
        graph(
            "Records read",
            "dead_letter is a record that could not be read. A share of more than 1 %: follow "
            "runbook DeadLettersArriving.",
            Query(rate("flywheel_records_total", "outcome"), "{{outcome}}"),
            unit="eps",
            stacked=True,
        ),
        graph(
            "Records not read yet",
            "Growing: ingest does not keep up or is held; follow runbook TopicLagGrowing. "
            "'lost' must stay 0: retention removed records before they were read.",
            Query("sum(flywheel_topic_lag_records)", "not read yet"),
            Query("sum(flywheel_topic_gap_records_total)", "lost"),
            Query("sum(flywheel_topic_problems)", "problems"),
        ),
        graph(
            "Since ingest last looked",
            "A second or two. Growing: ingest hangs, and its other figures stand still; follow "
            "runbook IngestSilent.",
            Query("time() - max(flywheel_ingest_last_turn_timestamp_seconds)", "seconds"),
            unit="s",
        ),
        graph(
            "Time to make a batch durable",
            "Near the poll timeout for long: the disk is slow; move the data folder, or lower "
            "ingest.max_records.",
            Query(quantile(0.5, "flywheel_ingest_batch_seconds"), "p50"),
            Query(quantile(0.95, "flywheel_ingest_batch_seconds"), "p95"),
            unit="s",
        ),
        graph(
            "Free disk",
            "Of the data folder. At ingest.min_free_disk_mb ingest pauses; make room or lower "
            "the retention settings before. Runbook DiskLow.",
            Query("min(flywheel_disk_free_bytes)", "free"),
            unit="bytes",
            steps=((None, RED), (1e9, GREEN)),
        ),
    ]
