"""What the settings say about records and draws, as the core wants to hear it."""

from pipelines.intake import Rules
from pipelines.records.common import DecodePolicy
from pipelines.sample import SamplingPolicy
from pipelines.types import Task
from service.keys import GATEWAY_PRODUCER, IMPORT_PRODUCER, Keys
from service.settings import Settings


def intake_rules(settings: Settings, keys: Keys) -> Rules:
    """For whoever reads records: ingest, and the rebuild of a lost database."""
    trusted = settings.ingest.trusted_producers
    producers = {name: secret.get_secret_value().encode() for name, secret in trusted.items()}
    return Rules(
        tasks={name: settings.task_of(name) for name in settings.tasks},
        decoding=DecodePolicy(
            claims=settings.claims(),
            tasks=frozenset(settings.tasks),
            producer_keys={
                **producers,
                GATEWAY_PRODUCER: keys.capture,
                IMPORT_PRODUCER: keys.imports,
            },
            own_producers=frozenset({GATEWAY_PRODUCER}),
            user_salt=keys.users,
            max_bytes=settings.ingest.max_record_bytes,
        ),
        teacher=settings.teacher.policy,
        terms=settings.teacher.label_terms,
    )


def first_policy(settings: Settings, salt: bytes) -> SamplingPolicy:
    """The draws before anything is known."""
    sampling = settings.sampling
    return SamplingPolicy(
        salt=salt,
        audit_rate=sampling.audit_rate,
        held_out_rate=sampling.held_out_rate,
        given_rate=sampling.given_rate,
        learning_scale=1.0,
        learning_pi_min=sampling.learning_pi_min,
        cold_start_rate=sampling.cold_start_rate,
        cold_start=True,
    )


def wanted_in_cold_start(settings: Settings, task: Task) -> int:
    """Training labels of a task with which its cold start is over."""
    return settings.sampling.cold_start_labels or max(3 * len(task.labels), 200)
