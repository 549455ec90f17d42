"""What the learner exports."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.metrics import SECONDS


class LearnerMetrics:
    """What the learner exports. `task` is a task of the settings, `bound` value | low | high."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._records(registry)
        self._topic(registry)
        self._labels(registry)
        self._money(registry)
        self._quality(registry)
        self._agreement(registry)
        self._versions(registry)
        self._operators(registry)
        self._jobs(registry)
        self._training(registry)

    def _records(self, registry: CollectorRegistry) -> None:
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
        # reason: as Past in pipelines.chat_request, or not_allowed.
        self.past = Counter(
            "flywheel_requests_past_student_total",
            "Requests that no student may answer, by what they ask for.",
            ["task", "reason"],
            registry=registry,
        )
        # reason: as SampleReason.
        self.samples = Counter(
            "flywheel_samples_total",
            "Events chosen for the teacher or the training set.",
            ["task", "reason"],
            registry=registry,
        )

    def _topic(self, registry: CollectorRegistry) -> None:
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

    def _labels(self, registry: CollectorRegistry) -> None:
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
        # Also counted as received. From five in a row on, a need says what they look like.
        self.unusable_answers = Counter(
            "flywheel_teacher_unusable_answers_total",
            "Paid answers of the teacher that were no label: outside the set, cut, empty.",
            ["task"],
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
        # bound: value | low | high. No agreement with a teacher means more than this.
        self.teacher_self_agreement = Gauge(
            "flywheel_teacher_self_agreement",
            "Share of the questions that the teacher answers the same when it is asked again.",
            ["task", "bound"],
            registry=registry,
        )
        self.labels_parked = Gauge(
            "flywheel_labels_parked",
            "Prompts on which the teacher contradicts itself: nobody is trained with them.",
            ["task"],
            registry=registry,
        )

    def _money(self, registry: CollectorRegistry) -> None:
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
            "Trusted coverage of the traffic that the champion was certified on.",
            ["task"],
            registry=registry,
        )

    def _agreement(self, registry: CollectorRegistry) -> None:
        # scope: assessed (all traffic) | served (what the student answered as promised) | forced
        # (what it answered unsure, because nobody else could be asked).
        self.agreement = Gauge(
            "flywheel_agreement",
            "Agreement with the teacher, unbiased, with its anytime-valid interval.",
            ["task", "scope", "bound"],
            registry=registry,
        )
        # Above 0.01 the alert ForcedAnswers fires: raise the escalation budget.
        self.forced_share = Gauge(
            "flywheel_forced_share",
            "Share of the last day's events that the student answered unsure, with nobody to ask.",
            ["task"],
            registry=registry,
        )
        # kind: mix (the traffic is not what the evidence was about) | audits (a promise is broken)
        # | novel (much is beyond its reach, and escalates; the threshold stays).
        self.guards = Gauge(
            "flywheel_threshold_guarded",
            "1 while the traffic or its audits are not what the champion was approved for.",
            ["task", "kind"],
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

    def _versions(self, registry: CollectorRegistry) -> None:
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

    def _operators(self, registry: CollectorRegistry) -> None:
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

    def _jobs(self, registry: CollectorRegistry) -> None:
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

    def _training(self, registry: CollectorRegistry) -> None:
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
