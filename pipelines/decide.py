"""What the decisions about one task say: its champion, what was before, what may be served next.

Pure rules over the chain of decisions. Whoever decides asks them: the learner with its database,
and a rollback while no learner runs, from files alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipelines.errors import DataDamaged, Refused
from pipelines.statistics.ceiling import reachable
from pipelines.types import (
    Decision,
    DecisionAction,
    Estimate,
    Evaluation,
    StudentVersion,
    Verdict,
)

LONGEST_REASON = 2_000

# Every page, table, card and feed says a verdict and a decision in these words.
VERDICTS: Mapping[Verdict, str] = {
    "better": "better than the champion",
    "non_inferior": "no worse than the champion",
    "worse": "worse than the champion",
    "insufficient_evidence": "too little evidence to tell",
}
BETTER_THAN_RIVALS = "better than every rival"
DECIDED: Mapping[DecisionAction, str] = {
    "approve": "approved",
    "reject": "rejected",
    "rollback": "rolled back to",
}


def verdict_in_words(verdict: Verdict, *, champion: str | None) -> str:
    """What the gate found. Without a champion a candidate is compared with its rivals alone."""
    if champion is None and verdict == "better":
        return BETTER_THAN_RIVALS
    return VERDICTS[verdict]


def would_serve_nothing(evaluation: Evaluation) -> str:
    """What approving a student without a certified threshold means; empty where it has one."""
    if evaluation.threshold.value is not None:
        return ""
    target = f"{100 * evaluation.threshold.target:g} %"
    return (
        "It would answer nothing by itself: every request still goes to the teacher, because no "
        f"threshold can be certified for {target}{_outlook(evaluation)}."
    )


def ceiling_in_words(same: Estimate | None) -> str:
    """How far the teacher agrees with itself, and what it leaves to reach; empty if unknown."""
    if same is None:
        return ""
    return (
        f"Asked the same again, the teacher gave the same answer to {_percent(same.value)} of "
        f"{same.n} prompts ({_percent(same.low)} to {_percent(same.high)}): no student can agree "
        f"with it more often than {_percent(reachable(same))} over all traffic."
    )


def above_ceiling(target: float, same: Estimate | None) -> str:
    """What it means where more is promised than the teacher agrees with itself; else empty."""
    if same is None or same.high >= target:
        return ""
    return (
        f"The target of {_percent(target)} is more than the teacher agrees with itself. "
        f"{ceiling_in_words(same)} Only prompts on which the teacher is steadier than that can be "
        "served. Lower the target, or make the teacher steadier (instructions, temperature)."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _outlook(evaluation: Evaluation) -> str:
    """What would change that. A report of an earlier version does not know."""
    enough = evaluation.items_until_certified
    if enough is None:
        return ""
    if enough == 0:
        return (
            "; more held-out prompts alone will hardly change that: it has to agree more often "
            "where it is surest, or the task's target has to be lower"
        )
    more = enough - evaluation.items
    return f"; {f'about {more:,}' if more > 0 else 'some'} more held-out prompts may change that"


class Judged(Protocol):
    """What an evaluation said about a version. `champion`: whom it was compared with."""

    @property
    def report(self) -> str: ...

    @property
    def promotable(self) -> bool: ...

    @property
    def verdict(self) -> Verdict: ...

    @property
    def champion(self) -> str | None: ...

    @property
    def threshold(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Chain:
    """The decisions about one task, oldest first. Students go by their content hash."""

    task: str
    links: tuple[Decision, ...]

    @classmethod
    def of(cls, task: str, links: Iterable[Decision]) -> "Chain":
        """Out of the decisions about all tasks."""
        return cls(task, tuple(link for link in links if link.task == task))

    @property
    def reigns(self) -> tuple[Decision, ...]:
        """The decisions that made a champion."""
        return tuple(link for link in self.links if link.action != "reject")

    @property
    def champion(self) -> str | None:
        """A pointer, not a state: the student of the latest approval or rollback."""
        return self.reigns[-1].student if self.reigns else None

    @property
    def before(self) -> str | None:
        """The champion before: what gateways keep at hand for a rollback."""
        others = (link.student for link in reversed(self.reigns) if link.student != self.champion)
        return next(others, None)

    @property
    def approved(self) -> tuple[str, ...]:
        """Every student that an operator ever approved, in that order."""
        return tuple(dict.fromkeys(one.student for one in self.links if one.action == "approve"))

    def last(self, student: str) -> Decision | None:
        """The latest decision about a student."""
        return next((link for link in reversed(self.links) if link.student == student), None)

    def approval_of(self, student: str) -> Decision:
        """The latest approval of a student; what is live always has one."""
        for link in reversed(self.links):
            if link.action == "approve" and link.student == student:
                return link
        raise DataDamaged(f"student {student[:12]} was made champion and never approved")


def refuse_approval(
    chain: Chain,
    version: StudentVersion,
    versions: Sequence[StudentVersion],
    judged: Judged | None,
    report: str,
    serves_nothing: bool,
) -> None:
    """Raise `Refused` where a version may not become the champion.

    Only with the report that the operator looked at, if it is the latest one, says promotable,
    and compares with the present champion; and never behind a newer version that was approved.
    One without a certified threshold only if the operator says to know that it serves nothing.
    """
    name, decision = version.name, chain.last(version.student)
    if version.student == chain.champion:
        raise Refused(f"{name} is the champion already")
    if version.student in chain.approved:
        raise Refused(f"{name} was approved before; roll back to it instead")
    if decision is not None:
        raise Refused(f"{name} was rejected by {decision.operator}: {decision.reason}")
    if judged is None:
        raise Refused(f"{name} was not evaluated yet")
    if judged.report != report:
        raise Refused(f"the report that you looked at is not the latest one of {name}; look again")
    if not judged.promotable:
        said = verdict_in_words(judged.verdict, champion=judged.champion)
        raise Refused(f"the gate does not let {name} through: {said}")
    if judged.champion != chain.champion:
        raise Refused(
            f"{name} was compared with another champion than the present one; "
            "it has to be evaluated again"
        )
    if version.number < newest_approved(chain, versions):
        raise Refused(f"a version newer than {name} was approved already")
    if judged.threshold is None and not serves_nothing:
        raise Refused(
            f"{name} answers nothing by itself, because no threshold can be certified for it; "
            "say that you know it (`serves_nothing`), or wait for a version that has one"
        )


def refuse_rejection(chain: Chain, version: StudentVersion) -> None:
    """Raise `Refused` where there is nothing to say no to."""
    if version.student in chain.approved:
        raise Refused(f"{version.name} was approved already; roll back instead")
    if chain.last(version.student) is not None:
        raise Refused(f"{version.name} was rejected already")


def rollback_target(
    chain: Chain, versions: Sequence[StudentVersion], to: int | None
) -> StudentVersion:
    """The version that a rollback goes to; `to` None: the one approved before the champion.

    Never forward to a newer one. `versions` are those that are known: one that nobody knows any
    more is passed over, because a rollback is asked for when something that works is needed.
    Raises `Refused`.
    """
    if chain.champion is None:
        raise Refused(f"{chain.task} has no champion yet; there is nothing to roll back")
    if to is None:
        known = {version.student: version for version in versions}
        earlier = chain.approved[: chain.approved.index(chain.champion)]
        target = next((known[one] for one in reversed(earlier) if one in known), None)
        if target is None:
            raise Refused(f"{chain.task} has no version that was approved before the champion")
        return target
    target = next((version for version in versions if version.number == to), None)
    if target is None:
        raise Refused(f"{chain.task} has no version {to}")
    if target.student == chain.champion:
        raise Refused(f"{target.name} is the champion already")
    if target.student not in chain.approved:
        raise never_approved(target.name)
    return target


def never_approved(name: str) -> Refused:
    return Refused(
        f"{name} was never approved; a rollback goes only to a version that an operator approved "
        "once"
    )


def newest_approved(chain: Chain, versions: Iterable[StudentVersion]) -> int:
    """The highest number that was ever approved; 0 for none."""
    return max((one.number for one in versions if one.student in chain.approved), default=0)


def required_reason(reason: str, verb: str) -> str:
    """The reason without space around it. Raises `Refused` where there is none."""
    text = reason.strip()
    if not text:
        raise Refused(f"to {verb}, say why")
    if len(text) > LONGEST_REASON:
        raise Refused(f"the reason is longer than {LONGEST_REASON:,} characters")
    return text
