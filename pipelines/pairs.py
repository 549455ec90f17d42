"""What comparing two students item by item finds, beside the counts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """An item that two students answer differently, one of them rightly."""

    event_id: str
    text: str
    label: str  # empty: it could not be had, and counts as the candidate's loss
    before: str
    after: str
    negative: bool  # was right, is wrong
    # The new answer is at or above its student's certified threshold; unknown in old reports.
    served: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """Pairs of candidate and champion from events that were kept without asking for a label."""

    items: int
    agreed: int  # both give the same answer: a tie whatever the label is
    bought: int  # of those where they differ: labels that were bought to compare the two
    missing: int  # of those where they differ: no label could be had
