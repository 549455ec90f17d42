"""The harness proves itself: bugs that are planted in a copy of the program are caught.

`make chaos ARGS=--planted` plants all of them; here are the cheapest.
"""

from collections import Counter

import pytest

from benchmarks.chaos.planted import BUGS, Bug, copy_of_the_program, is_caught, plant

CHEAP = [bug for bug in BUGS if bug.cheap]
ASKED_FOR = {
    "auto-commit consumer", "offset outside the transaction", "check-then-increment budget",
    "ledger written after the call", "publish without fsync", "manifest first",
    "same-name reload", "alias flipped before warm-up", "unload without drain",
    "gate passing on NaN", "held-out leaking into training", "decision not bound to the hash",
}  # fmt: skip


@pytest.mark.parametrize("bug", CHEAP[:3], ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    assert is_caught(bug), f"{bug.test} does not see: {bug.name}"


def test_every_bug_finds_its_place_in_the_program() -> None:
    with copy_of_the_program() as folder:
        originals = {bug.file: (folder / bug.file).read_text() for bug in BUGS}
        for bug in BUGS:
            plant(bug, folder)
            compile((folder / bug.file).read_text(), bug.file, "exec")
            (folder / bug.file).write_text(originals[bug.file])


def test_a_bug_without_its_place_is_an_error() -> None:
    lost = Bug(name="lost", file="storage/durable.py", old="not there", new="", test="")
    with copy_of_the_program() as folder, pytest.raises(LookupError, match="not there any more"):
        plant(lost, folder)


def test_all_that_was_asked_for_is_planted_once() -> None:
    names = Counter(bug.name for bug in BUGS)
    assert set(names) >= ASKED_FOR
    assert max(names.values()) == 1
