"""Every number that the two planes export. Declared here, and nowhere else."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class GatewayMetrics:
    """What one gateway exports. Tests pass their own registry.

    `task` is a task of the settings, or `unclaimed`: the app chooses model names, and must
    not be able to make series.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        # Chat requests. served_by: student | teacher | nobody. outcome: answered (a sure
        # student) | unsure (an unsure student, marked) | escalated | passed_through |
        # refused (unsure, and the task wants no unsure answers) | failed.
        self.requests = Counter(
            "flywheel_gateway_requests_total",
            "Chat requests, by who answered and how.",
            ["task", "served_by", "outcome"],
            registry=registry,
        )
        # Turned away before routing. reason: key | too_large | malformed.
        self.rejected = Counter(
            "flywheel_gateway_rejected_total",
            "Requests that were turned away unread.",
            ["reason"],
            registry=registry,
        )
        # Claimed requests with something that a student cannot do. reason: tools | content |
        # choices | format | logprobs | audio | malformed.
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


class LearnerMetrics:
    """What the learner exports. `task` is a task of the settings, `bound` value | low | high."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._traffic(registry)
        self._money(registry)
        self._quality(registry)
        self._loop(registry)

    def _traffic(self, registry: CollectorRegistry) -> None:
        # Records read from the topic, counted after their transaction. outcome: event |
        # dead_letter. Many dead letters: look at `flywheel dead-letters list`.
        self.records = Counter(
            "flywheel_records_total",
            "Records read from the topic.",
            ["outcome"],
            registry=registry,
        )
        # task also `unclaimed`. served_by: student | teacher | app.
        self.events = Counter(
            "flywheel_events_total",
            "Prompt events, by who answered.",
            ["task", "served_by"],
            registry=registry,
        )
        # Events that no student assessed although there is one: the gateway was down.
        self.unassessed = Counter(
            "flywheel_events_unassessed_total",
            "Events that could not be assessed.",
            ["task"],
            registry=registry,
        )
        # reason: as SampleReason.
        self.samples = Counter(
            "flywheel_samples_total",
            "Events chosen for the teacher or the training set.",
            ["task", "reason"],
            registry=registry,
        )
        # Growing: ingest does not keep up, or is held.
        self.topic_lag = Gauge(
            "flywheel_topic_lag_records", "Records not read yet.", registry=registry
        )
        # What hinders reading right now; the log has a sentence for each.
        self.topic_problems = Gauge(
            "flywheel_topic_problems", "Problems that hinder reading.", registry=registry
        )
        # Records that retention removed before they were read. Must stay 0.
        self.topic_gap_records = Counter(
            "flywheel_topic_gap_records_total",
            "Records lost to the topic's retention.",
            registry=registry,
        )
        # reason: operator (paused by one) | poison (paused by itself, because almost nothing on
        # the topic can be read) | disk (too little is free, or a write found none).
        self.ingest_held = Gauge(
            "flywheel_ingest_held",
            "1 for the reason why ingest is held, if it is.",
            ["reason"],
            registry=registry,
        )
        # Growing: ingest hangs, and nothing else says so.
        self.ingest_last_turn = Gauge(
            "flywheel_ingest_last_turn_timestamp_seconds",
            "When ingest last began to look for records.",
            registry=registry,
        )
        self.ingest_batch_seconds = Histogram(
            "flywheel_ingest_batch_seconds",
            "Time to make one batch durable.",
            buckets=SECONDS,
            registry=registry,
        )
        self.dead_letters = Gauge(
            "flywheel_dead_letters", "Dead letters that were not replayed.", registry=registry
        )
        self.disk_free_bytes = Gauge(
            "flywheel_disk_free_bytes", "Free space of the data folder's disk.", registry=registry
        )

    def _money(self, registry: CollectorRegistry) -> None:
        # source: bought | given | correction.
        self.labels = Counter(
            "flywheel_labels_total",
            "Labels that came in.",
            ["task", "source"],
            registry=registry,
        )
        # status: pending | held (outcome unknown) | failed.
        self.samples_waiting = Gauge(
            "flywheel_samples_waiting",
            "Samples without a label, by why.",
            ["task", "status"],
            registry=registry,
        )
        # outcome: received | not_sent | rate_limited | unknown | impossible | refused.
        self.teacher_calls = Counter(
            "flywheel_teacher_calls_total",
            "Calls to the teacher, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        # 1: after failures in a row no call is made for a while, longer each time.
        self.teacher_breaker_open = Gauge(
            "flywheel_teacher_breaker_open",
            "Whether calls for labels rest because the teacher failed.",
            registry=registry,
        )
        # Held until an operator releases or drops them: `flywheel unknown list`.
        self.unknown_outcomes = Gauge(
            "flywheel_teacher_unknown_outcomes",
            "Teacher calls of which nobody knows whether they were charged.",
            registry=registry,
        )
        # kind: calls | tokens | money. Of today (UTC), reserved amounts included.
        self.label_spend = Gauge(
            "flywheel_label_spend_today",
            "What labels cost today.",
            ["kind"],
            registry=registry,
        )
        self.label_budget = Gauge(
            "flywheel_label_budget_today",
            "What labels may cost a day.",
            ["kind"],
            registry=registry,
        )
        # kind: calls | money.
        self.escalation_spend = Gauge(
            "flywheel_escalation_spend_today",
            "What escalations cost today, leases included.",
            ["kind"],
            registry=registry,
        )
        # kind: calls | money.
        self.escalation_budget = Gauge(
            "flywheel_escalation_budget_today",
            "What escalations may cost a day.",
            ["kind"],
            registry=registry,
        )
        # Against asking the teacher for everything; since the first event.
        self.saved_money = Gauge(
            "flywheel_saved_money",
            "Money that the student's answers saved.",
            ["task"],
            registry=registry,
        )

    def _quality(self, registry: CollectorRegistry) -> None:
        # Share of all assessed traffic above the threshold: what the student may answer.
        self.coverage = Gauge(
            "flywheel_trusted_coverage",
            "Trusted coverage of the last minutes, with its interval.",
            ["task", "bound"],
            registry=registry,
        )
        self.certified_coverage = Gauge(
            "flywheel_certified_coverage",
            "Trusted coverage on the held-out items when the champion was certified.",
            ["task"],
            registry=registry,
        )
        # scope: assessed (all traffic) | served (what the student answered).
        self.agreement = Gauge(
            "flywheel_agreement",
            "Agreement with the teacher, unbiased, with its anytime-valid interval.",
            ["task", "scope", "bound"],
            registry=registry,
        )
        # 1 / rollback.alpha is enough to go back to that version; 1 says nothing.
        self.regression_evidence = Gauge(
            "flywheel_regression_evidence",
            "E-value that the version approved before is better than the champion.",
            ["task"],
            registry=registry,
        )
        # As tasks.*.target says.
        self.agreement_target = Gauge(
            "flywheel_agreement_target",
            "The agreement that is promised where the student serves.",
            ["task"],
            registry=registry,
        )
        self.audit_labels = Gauge(
            "flywheel_audit_labels",
            "Audited events with a label since the champion's promotion.",
            ["task"],
            registry=registry,
        )
        self.audit_unanswered = Gauge(
            "flywheel_audit_unanswered",
            "Audited events whose label has not come.",
            ["task"],
            registry=registry,
        )
        # -1: nothing could be certified, every request escalates.
        self.threshold = Gauge(
            "flywheel_cascade_threshold",
            "Confidence from which the student's answer is served.",
            ["task"],
            registry=registry,
        )
        # Always 1; role: champion | previous.
        self.student_info = Gauge(
            "flywheel_student_info",
            "The student versions in use.",
            ["task", "version", "role"],
            registry=registry,
        )
        # side: training | held_out.
        self.labels_stored = Gauge(
            "flywheel_labels_stored",
            "Labels that a dataset can be made of.",
            ["task", "side"],
            registry=registry,
        )
        self.gate_verdicts = Counter(
            "flywheel_gate_verdicts_total",
            "Evaluations, by the gate's verdict.",
            ["task", "verdict"],
            registry=registry,
        )
        # 1: an operator is needed.
        self.versions_waiting = Gauge(
            "flywheel_versions_waiting",
            "Versions that wait for an operator.",
            ["task"],
            registry=registry,
        )
        # 1: it serves where it is in memory, and would be refused at the next start.
        self.champion_damaged = Gauge(
            "flywheel_champion_damaged",
            "Whether the champion's artifacts are not what was approved.",
            ["task"],
            registry=registry,
        )
        # kind: as notify.kinds. 1: there is such an occasion now; told or not.
        self.operator_needed = Gauge(
            "flywheel_operator_needed",
            "Whether an operator is needed, by why.",
            ["kind"],
            registry=registry,
        )
        # outcome: sent | failed (it is tried again).
        self.notifications = Counter(
            "flywheel_notifications_total",
            "Attempts to tell an operator, by what came of them.",
            ["kind", "outcome"],
            registry=registry,
        )
        # Above 0 for long: the webhook does not take them.
        self.notifications_owed = Gauge(
            "flywheel_notifications_owed",
            "Notifications that were not delivered yet.",
            registry=registry,
        )
        # action: approve | reject | rollback.
        self.decisions = Counter(
            "flywheel_decisions_total",
            "Operators' decisions.",
            ["task", "action"],
            registry=registry,
        )

    def _loop(self, registry: CollectorRegistry) -> None:
        # job: relabel | train | evaluate | watch | retention. Alert when now minus this
        # exceeds three times the job's interval.
        self.job_last_success = Gauge(
            "flywheel_job_last_success_timestamp_seconds",
            "When a job last ended without an error.",
            ["job"],
            registry=registry,
        )
        # outcome: done | nothing | failed | paused | missed.
        self.job_ticks = Counter(
            "flywheel_job_ticks_total",
            "Firings of the schedule, by what came of them.",
            ["job", "outcome"],
            registry=registry,
        )
        self.job_seconds = Histogram(
            "flywheel_job_seconds",
            "How long a job took.",
            ["job"],
            buckets=(0.01, 0.05, 0.25, 1, 5, 15, 60, 300, 1800),
            registry=registry,
        )
        self.training_running = Gauge(
            "flywheel_training_running", "Whether a trainer runs.", registry=registry
        )
        self.training_progress = Gauge(
            "flywheel_training_progress_ratio", "Share of the run that is done.", registry=registry
        )
        self.training_rate = Gauge(
            "flywheel_training_examples_per_second", "Speed of the run.", registry=registry
        )
        self.training_seconds_left = Gauge(
            "flywheel_training_seconds_left", "Estimated time to its end.", registry=registry
        )
        self.training_loss = Gauge(
            "flywheel_training_loss",
            "Loss of the last step; of recipes that tune.",
            registry=registry,
        )
        # outcome: succeeded | failed.
        self.training_runs = Counter(
            "flywheel_training_runs_total",
            "Training runs, by how they ended.",
            ["task", "outcome"],
            registry=registry,
        )
        self.training_seconds = Gauge(
            "flywheel_training_last_seconds",
            "How long the last run took.",
            ["task"],
            registry=registry,
        )
