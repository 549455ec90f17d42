"""Durations and schedules as the settings write them: `1h30m`, `every 30s`, a cron line."""

import re
from datetime import timedelta
from typing import Annotated, cast

from pydantic import BeforeValidator, PlainSerializer

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def parse_duration(value: object) -> object:
    """Read `90s`, `5m` or `1h30m`; everything else is left for pydantic to judge."""
    if not isinstance(value, str):
        return value
    text = value.strip().removeprefix("every ").strip()
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        raise ValueError(f"'{value}' is not a duration; write for example 30s, 5m, 1h30m or 7d")
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))


def format_duration(value: timedelta) -> str:
    """As `parse_duration` reads it, in the largest unit that holds it exactly."""
    milliseconds = round(value / timedelta(milliseconds=1))
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if milliseconds >= size and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
]


def parse_schedule(text: str) -> timedelta | str:
    """An interval (`every 10s`), or the five fields of a cron line. Errors are `ValueError`."""
    if len(text.split()) == 5:
        return text
    return cast("timedelta", parse_duration(text))


def check_schedule(text: str) -> str:
    parse_schedule(text)
    return text


Schedule = Annotated[str, BeforeValidator(check_schedule)]
