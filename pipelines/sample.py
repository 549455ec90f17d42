"""Which events the teacher should see, with their inclusion probabilities.

Every decision hashes the event id, so a redelivered record gets the same one. Who is chosen
is decided first; only the chosen are looked at closer (near-duplicate group and side).
See statistics.md, section 1.
"""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Final, NamedTuple

from msgspec.structs import replace

from pipelines.types import Assessment, Draws, PromptEvent, SampleReason, Side

_SCALE = 2.0**-64
_FOUR = Struct(">4Q").unpack
_new = tuple.__new__
LEARNING_SCALE_MAX = 50.0
NO_THRESHOLD: Final = "no_threshold"  # why a student is unsure of every prompt: nothing is trusted
HELD_OUT_SHARE_OF_GROUPS = 0.2
# What a policy's version is taken over.
OF_A_POLICY = (
    "audit_rate",
    "cold_start",
    "cold_start_rate",
    "full",
    "given_rate",
    "held_out_free_rate",
    "held_out_rate",
    "learning_pi_min",
    "learning_scale",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPolicy:
    """The rates in force. Changing any of them changes `version`, which is logged per event."""

    salt: bytes
    audit_rate: float
    held_out_rate: float
    given_rate: float
    learning_scale: float  # c in pi = clip(c * u, pi_min, 1)
    learning_pi_min: float
    cold_start_rate: float
    cold_start: bool  # too few labels to be choosy
    # of the held-out draw where no student serves and the teacher answers: its label costs nothing
    held_out_free_rate: float = 1.0
    full: bool = False  # enough samples wait already: only the uniform draws choose more
    # Of the events that the held-out draw leaves: kept without asking for a label.
    pool_rate: float = 0.0

    @property
    def version(self) -> str:
        values = [(name, getattr(self, name)) for name in OF_A_POLICY]
        if self.pool_rate:  # what keeps none has the version that it had before there was a pool
            values.append(("pool_rate", self.pool_rate))
        return blake2b(repr(values).encode(), digest_size=4).hexdigest()


class Uniforms(NamedTuple):
    """Four independent numbers in [0, 1), functions of the event id and the salt alone."""

    audit: float
    held_out: float
    learning: float
    unweighted: float


class Choice(NamedTuple):
    """What the draws say before the side is known."""

    draws: Draws
    trigger: SampleReason | None
    cold_start: bool
    given: bool


def choose(
    event: PromptEvent, assessment: Assessment, policy: SamplingPolicy, *, has_teacher_label: bool
) -> Choice | None:
    """Whether the event is looked at any closer; None for the many that are only counted."""
    for_audit, for_held_out, for_learning, unweighted = uniforms(event.event_id, policy.salt)
    # Whether a student serves at all says nothing about how hard a prompt is, only when it came: so
    # this is a draw of known probability still. An event that one of its answers was escalated for
    # is paid for like any other: the hard ones would come in by themselves.
    nobody_serves = event.student is None or event.student.unsure == NO_THRESHOLD
    free = has_teacher_label and nobody_serves
    held_out_rate = policy.held_out_free_rate if free else policy.held_out_rate
    held_out = for_held_out < held_out_rate
    # The next stretch of the same number: whoever is kept was not held out, and both draws together
    # are uniform.
    in_pool = held_out_rate <= for_held_out < held_out_rate + policy.pool_rate
    # Before there is a student, audits only say what the traffic is (`pipelines.traffic`).
    audit_rate = held_out_rate if free and event.student is None else policy.audit_rate
    audit = for_audit < audit_rate
    given = has_teacher_label and unweighted < policy.given_rate
    pi, learning, cold_start, trigger = 0.0, False, False, None
    if not policy.full:
        cold_start = policy.cold_start and unweighted < policy.cold_start_rate
        if assessment.triggers:
            trigger = assessment.triggers[0]
        if event.student is not None:
            pi = policy.learning_scale * assessment.failure_probability
            pi = min(1.0, max(policy.learning_pi_min, pi))
            learning = for_learning < pi
    if not (audit or held_out or in_pool or learning or given or cold_start or trigger):
        return None
    draws = Draws(
        audit=audit_rate if audit else None,
        held_out=held_out_rate if held_out else None,
        learning=pi if learning else None,
        pool=min(policy.pool_rate, 1.0 - held_out_rate) if in_pool else None,
    )
    return Choice(draws=draws, trigger=trigger, cold_start=cold_start, given=given)


def choose_feedback(assessment: Assessment) -> Choice | None:
    """As `choose`, for what a person said about an earlier event.

    It is no traffic, the sums leave it out: in a draw it would be counted without them.
    """
    if not assessment.triggers:
        return None
    return Choice(draws=Draws(), trigger=assessment.triggers[0], cold_start=False, given=False)


def settle(choice: Choice, side: Side) -> tuple[SampleReason, Draws] | None:
    """The reason that counts on this side of the split, or None: not a sample after all.

    Held-out groups feed the gate and the live estimates and never train, so only the three
    uniform draws choose from them; training groups are closed to the held-out draw and the pool.
    """
    if side is Side.HELD_OUT:
        draws = replace(choice.draws, learning=None)
        if draws.held_out is not None:
            return SampleReason.HELD_OUT, draws
        if draws.audit is not None:
            return SampleReason.AUDIT, draws
        return (SampleReason.POOL, draws) if draws.pool is not None else None
    draws = replace(choice.draws, held_out=None, pool=None)
    if draws.audit is not None:
        return SampleReason.AUDIT, draws
    if choice.trigger is not None:
        return choice.trigger, draws
    if draws.learning is not None:
        return SampleReason.UNCERTAIN, draws
    if choice.cold_start:
        return SampleReason.COLD_START, draws
    return (SampleReason.GIVEN, draws) if choice.given else None


def uniforms(event_id: str, salt: bytes) -> Uniforms:
    """One keyed hash, cut in four: independent draws for the price of one."""
    keyed = _keyed(salt).copy()
    keyed.update(event_id.encode())
    audit, held_out, learning, unweighted = _FOUR(keyed.digest())
    # Not Uniforms(...), which takes as long as the hash: this runs for every event.
    return _new(
        Uniforms, (audit * _SCALE, held_out * _SCALE, learning * _SCALE, unweighted * _SCALE)
    )


@lru_cache(maxsize=8)
def _keyed(salt: bytes) -> blake2b:
    """What every hash with this key begins with."""
    return blake2b(key=salt, digest_size=32)


def side_of(first_event_id: str, salt: bytes) -> Side:
    """The side of a near-duplicate group, by the hash of its first member: one in five."""
    digest = blake2b(first_event_id.encode(), key=salt, person=b"side", digest_size=8).digest()
    unit = int.from_bytes(digest, "big") * _SCALE
    return Side.HELD_OUT if unit < HELD_OUT_SHARE_OF_GROUPS else Side.TRAINING


def next_learning_scale(
    scale: float, *, spent: float, due: float, gain: float = 0.3, budget: float
) -> float:
    """One step of the controller that lets the learning draw follow its share of the budget.

    `due` is what should have been spent by now. The step is multiplicative: the error, as a
    share of the daily budget, moves the logarithm of the scale, so the product of all steps
    is the integral term.
    """
    if budget <= 0:
        return 0.0
    error = max(-1.0, min(1.0, (due - spent) / budget))
    return float(min(LEARNING_SCALE_MAX, max(0.01, scale * (1.0 + gain * error))))
