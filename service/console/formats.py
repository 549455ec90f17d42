"""How figures and moments read on the pages."""

from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from pipelines.decide import verdict_in_words
from pipelines.types import Estimate, Verdict


def percent(share: float | None, digits: int = 1) -> str:
    """`83 %`, `94.1 %`; a dash for what is not known."""
    if share is None:
        return "–"
    text = f"{100 * share:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}\N{NO-BREAK SPACE}%"


def interval(found: Estimate | None) -> str:
    """`91.4 to 96.1 %`."""
    if found is None:
        return ""
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """A difference of shares, with its sign: `+3.8 points`."""
    return f"{100 * difference:+.1f} points".replace("-", "\N{MINUS SIGN}")


def money(amount: float | None) -> str:
    """Small amounts keep the digits that matter."""
    if amount is None:
        return "–"
    if amount and abs(amount) < 0.1:
        return f"{amount:.4f}"
    return f"{amount:,.2f}"


def number(amount: float | None) -> str:
    return "–" if amount is None else f"{amount:,.0f}"


def size(count: int) -> str:
    """`413 kB`."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def span(length: timedelta | float | None) -> str:
    """`5 s`, `3 min`, `2 h`, `4 d`."""
    if length is None:
        return "–"
    seconds = length.total_seconds() if isinstance(length, timedelta) else length
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 86_400:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86_400:.0f} d"


def since(moment: datetime | None, now: datetime) -> str:
    """`5 s ago`, `in 20 s`."""
    if moment is None:
        return "–"
    if moment > now:
        return f"in {span(moment - now)}"
    return f"{span(now - moment)} ago" if now - moment >= timedelta(seconds=1) else "now"


def until(moment: datetime, now: datetime) -> str:
    """`in 20 s`; `now` for what is due."""
    return f"in {span(moment - now)}" if moment - now >= timedelta(seconds=1) else "now"


def stamp(moment: datetime) -> str:
    """For people: `2026-03-01 12:00:05 UTC`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def short(digest: str | None) -> str:
    """Enough of a content hash to recognise it."""
    return "–" if digest is None else digest[:12]


def words(name: str) -> str:
    """`insufficient_evidence` reads `insufficient evidence`."""
    return name.replace("_", " ")


def verdict(found: Verdict, champion: str | None) -> str:
    """What the gate found, in words; `champion` is whom the candidate was compared with."""
    return verdict_in_words(found, champion=champion)


FILTERS = {
    "percent": percent,
    "interval": interval,
    "points": points,
    "money": money,
    "number": number,
    "size": size,
    "span": span,
    "since": since,
    "until": until,
    "stamp": stamp,
    "short": short,
    "words": words,
    "verdict": verdict,
    "path": lambda text: quote(str(text), safe=""),
}
