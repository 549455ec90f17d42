"""What a gateway exports."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.metrics import SECONDS


class GatewayMetrics:
    """What one gateway exports. Tests pass their own registry.

    `task` is a task of the settings, or `unclaimed`: the app chooses model names, and must
    not be able to make series.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests(registry)
        self._students(registry)
        self._capture(registry)
        self._swaps(registry)
        self._teacher(registry)

    def _requests(self, registry: CollectorRegistry) -> None:
        # Chat requests. served_by: student | teacher | nobody. outcome: answered (a sure
        # student) | unsure (an unsure student, marked) | escalated | passed_through |
        # refused (unsure, and the task wants no unsure answers) | failed.
        self.requests = Counter(
            "flywheel_gateway_requests_total",
            "Chat requests, by who answered and how.",
            ["task", "served_by", "outcome"],
            registry=registry,
        )
        # Turned away before routing. reason: key | origin | host | media_type | too_large |
        # model (not in gateway.pass_models) | ceiling (gateway.pass_requests_per_minute) |
        # malformed.
        self.rejected = Counter(
            "flywheel_gateway_rejected_total",
            "Requests that were turned away unread.",
            ["reason"],
            registry=registry,
        )
        # Claimed requests with something that a student cannot do. reason: tools | content |
        # choices | format | logprobs | audio | endpoint | malformed.
        self.unsupported = Counter(
            "flywheel_gateway_unsupported_total",
            "Claimed requests that went to the teacher for what they ask.",
            ["task", "reason"],
            registry=registry,
        )
        # reason: below_threshold | no_threshold | empty | too_long.
        self.unsure = Counter(
            "flywheel_gateway_unsure_total",
            "Requests of which the student was unsure.",
            ["task", "reason"],
            registry=registry,
        )
        # outcome: answered | no_lease | teacher_failed. Many no_lease: raise the budget, or
        # look whether the learner is alive.
        self.escalations = Counter(
            "flywheel_gateway_escalations_total",
            "Unsure requests that wanted the teacher.",
            ["task", "outcome"],
            registry=registry,
        )
        # Whole requests, seen from here. served_by as above.
        self.request_seconds = Histogram(
            "flywheel_gateway_request_seconds",
            "Time to answer a chat request.",
            ["served_by"],
            buckets=SECONDS,
            registry=registry,
        )

    def _students(self, registry: CollectorRegistry) -> None:
        # One batch through encoder and head, or one text in an engine. Near the request time:
        # the model is the limit.
        self.model_seconds = Histogram(
            "flywheel_gateway_model_seconds",
            "Time of one batch in the model.",
            buckets=SECONDS,
            registry=registry,
        )
        # Texts in one batch. Above 1 under concurrent clients.
        self.model_batch = Histogram(
            "flywheel_gateway_model_batch_texts",
            "Texts in one batch.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        # The student gave no answer; the teacher was asked. reason: crashed (in its model) |
        # engine (the engine process ended or hangs) | busy (too many texts wait for it).
        self.student_failures = Counter(
            "flywheel_gateway_student_failures_total",
            "Texts to which the student gave no answer.",
            ["task", "reason"],
            registry=registry,
        )
        # Processes of causal students that are up, one for each chat model.
        self.engines = Gauge(
            "flywheel_gateway_engines", "Engine processes that answer.", registry=registry
        )
        # Growing to 64: the chat model is too slow for the traffic, and the teacher is asked.
        self.engine_queue = Gauge(
            "flywheel_gateway_engine_queue_texts",
            "Texts that wait for an engine, or are being read by one.",
            registry=registry,
        )
        # Each is followed by a restart. reason: ended (killed, out of memory, could not start) |
        # hung (no answer in time).
        self.engine_failures = Counter(
            "flywheel_gateway_engine_failures_total",
            "Ends of engine processes that nobody wanted.",
            ["reason"],
            registry=registry,
        )
        # Texts longer than the encoder reads. Many: raise encoder.max_tokens.
        self.truncated = Counter(
            "flywheel_gateway_truncated_total",
            "Texts that the student read only in part.",
            ["task"],
            registry=registry,
        )

    def _capture(self, registry: CollectorRegistry) -> None:
        # Events waiting for the topic. Growing: the topic is slow or down.
        self.capture_queue = Gauge(
            "flywheel_gateway_capture_queue_events",
            "Events that are not on the topic yet.",
            registry=registry,
        )
        self.captured = Counter(
            "flywheel_gateway_captured_total",
            "Events that are durable on the topic.",
            registry=registry,
        )
        # Never zero again once it is not: events are lost. reason: overflow (the topic was
        # down for long) | given_up (by the broker's client) | unencodable | too_large (longer
        # than ingest.max_record_bytes) | shutdown.
        self.capture_dropped = Counter(
            "flywheel_gateway_capture_dropped_total",
            "Events that never reached the topic.",
            ["reason"],
            registry=registry,
        )

    def _swaps(self, registry: CollectorRegistry) -> None:
        # outcome: swapped | rolled_back (the student was resident) | withdrawn |
        # and why not: signature | stale | artifact | golden | labels | stack (the training
        # stack is not installed here) | unreachable | failed.
        self.swaps = Counter(
            "flywheel_gateway_swaps_total",
            "Attempts to serve what is published.",
            ["task", "outcome"],
            registry=registry,
        )
        # From noticing a publication to serving it.
        self.swap_seconds = Histogram(
            "flywheel_gateway_swap_seconds",
            "Time to load, warm up, verify and flip.",
            buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.resident = Gauge(
            "flywheel_gateway_resident_generations",
            "Students in memory: champions, those kept for a rollback, those that drain.",
            registry=registry,
        )
        # role: champion | previous.
        self.student_info = Gauge(
            "flywheel_gateway_student_info",
            "1 for each student that is in memory, with its version.",
            ["task", "version", "role"],
            registry=registry,
        )

    def _teacher(self, registry: CollectorRegistry) -> None:
        # 0 with unsure traffic: escalations have stopped, the student answers marked.
        self.lease_calls = Gauge(
            "flywheel_gateway_lease_remaining_calls",
            "Escalations that may still be made without asking the learner.",
            registry=registry,
        )
        # kind: connect | timeout | redirect | refused (4xx) | rate_limited | broken (5xx, or
        # not an answer).
        self.upstream_errors = Counter(
            "flywheel_gateway_upstream_errors_total",
            "Calls of the teacher that gave no answer.",
            ["kind"],
            registry=registry,
        )
        # verdict: good | bad.
        self.feedback = Counter(
            "flywheel_gateway_feedback_total",
            "Feedback that was taken.",
            ["task", "verdict"],
            registry=registry,
        )
