"""What is said of a champion in a sentence: how much it answers, and whether its promise holds."""

from pipelines.statistics.certify import items_needed
from service.operator.status import Figures, Version

SAYS_NOTHING = 0.25  # an interval this wide is consistent with nearly everything


def serving(champion: Version | None, figures: Figures) -> str:
    if champion is None:
        return "No student yet. The teacher answers every prompt."
    if figures.served_by_student_share is None:
        return f"{champion.task}-v{champion.number} is published."
    share = f"{100 * figures.served_by_student_share:.0f} %"
    return f"{champion.task}-v{champion.number} answers {share} of the prompts."


def quality(champion: Version | None, figures: Figures, target: float) -> str:
    if champion is None:
        return "Nothing to measure before the first student."
    found, goal = figures.served_agreement, f"the target of {100 * target:g} %"
    raised = [guard for guard in figures.guards if guard.kind != "novel"]
    if raised:
        known = [guard.threshold for guard in raised if guard.threshold is not None]
        what = (
            f"only answers with a confidence of {max(known):g} or more are trusted"
            if len(known) == len(raised)
            else "nothing it says is trusted, and the teacher is asked"
        )
        return f"{' '.join(guard.reason for guard in raised)} Until that is over, {what}."
    if found is not None and found.high < target:
        return f"Live agreement is below {goal}."
    if found is not None and found.low >= target:
        return f"Live agreement holds {goal}."
    if found is None or found.high - found.low > SAYS_NOTHING:
        needed = items_needed(target)
        return (
            f"Nobody knows yet whether {goal} is held: {found.n if found else 0} answers that the "
            f"student gave alone were audited; it takes at least {needed}, all of them right."
        )
    return f"Live agreement is consistent with {goal}; the interval still contains it."
