"""Guards: what is trusted of a champion while its traffic or its audits are not as approved."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

# `mix`: the newest prompts are not what the evidence was about. `audits`: the promise is broken.
# `novel`: much is beyond reach; the threshold stays, because that is not trusted anyway.
GuardKind = Literal["mix", "audits", "novel"]

# A surplus of far prompts may be chance, and is over within minutes then. Only one that stands for
# so long says that the traffic is another.
LASTING = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """One reason to trust a champion less, or to want a successor."""

    task: str
    student: str
    kind: GuardKind
    raised_at: datetime
    since: datetime  # when what it is about began, as far as that can be told
    threshold: float | None  # None: nothing is trusted
    reason: str
    changed_at: datetime
    ended_at: datetime | None = None

    def is_shift(self, now: datetime) -> bool:
        """Whether it says that the traffic is another, or the student worse: no passing chance."""
        return self.kind != "mix" or (self.ended_at or now) - self.raised_at >= LASTING


def threshold_in_force(approved: float | None, guards: Iterable[Guard]) -> float | None:
    """The strictest of the approved threshold and the guards'; None: nothing is trusted."""
    wanted = [approved, *(guard.threshold for guard in guards)]
    known = [threshold for threshold in wanted if threshold is not None]
    return max(known) if len(known) == len(wanted) else None
