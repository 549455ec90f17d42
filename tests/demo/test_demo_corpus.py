"""The demonstration's desk: enough of it, really different, and its truth recoverable."""

from collections import Counter
from itertools import combinations

import pytest
import rensa

from service.demo.corpus import intent_of, load_corpus, normalised, shingles
from service.demo.traffic import DemoMessage, Traffic

CORPUS = load_corpus()
MESSAGES = [(intent, text) for intent, texts in CORPUS.messages.items() for text in texts]


def traffic(seed: int, count: int, new_intent_share: float = 0.15) -> list[DemoMessage]:
    stream = Traffic(seed)
    return [stream.message(index, new_intent_share=new_intent_share) for index in range(count)]


def test_desk_has_the_promised_size() -> None:
    known = [label for label in CORPUS.labels if label != CORPUS.new_intent]
    assert len(known) >= 24
    assert set(CORPUS.messages) == set(CORPUS.labels)
    assert sum(len(CORPUS.messages[label]) for label in known) >= 720
    assert min(len(CORPUS.messages[label]) for label in known) >= 29
    assert len(CORPUS.messages[CORPUS.new_intent]) >= 40


def test_instructions_name_every_label_the_new_one_included() -> None:
    assert all(f"\n{label}:" in CORPUS.instructions for label in CORPUS.labels)


def test_no_two_messages_are_near_duplicates() -> None:
    shingled = [(text, shingles(text)) for _, text in MESSAGES]
    alike = [
        (one, other)
        for (one, left), (other, right) in combinations(shingled, 2)
        if len(left & right) > 0.5 * len(left | right)
    ]
    assert alike == []


def test_messages_vary_in_length_and_manner() -> None:
    words = sorted(len(text.split()) for _, text in MESSAGES)
    assert words[0] <= 3
    assert words[-1] >= 40
    assert sum(text == text.lower() for _, text in MESSAGES) > len(MESSAGES) / 6


@pytest.mark.parametrize("seed", [1, 20260901])
def test_truth_is_recovered_from_every_generated_text(seed: int) -> None:
    wrong = [item for item in traffic(seed, 10_000) if intent_of(item.text) != item.intent]
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "What is the capital of Mongolia?",
        "Write a haiku about autumn rain.",
        "I am still waiting on my card?",
        "Thanks! Best regards, Hannah",
    ],
)
def test_texts_from_elsewhere_have_no_truth(text: str) -> None:
    assert intent_of(text) is None


def test_what_surrounds_a_message_says_nothing_about_it() -> None:
    phrases = CORPUS.phrases
    around = [*phrases.openers, *phrases.closers, *phrases.asides]
    around += [line for lines in phrases.contexts.values() for line in lines]
    assert [line for line in around if intent_of(line) is not None] == []


def test_traffic_depends_on_seed_and_index_alone() -> None:
    assert traffic(3, 200) == traffic(3, 200)
    assert Traffic(3).message(150, new_intent_share=0.15) == traffic(3, 200)[150]
    assert traffic(3, 50) != traffic(4, 50)


def test_new_intent_appears_only_when_it_is_let_in_and_then_at_its_share() -> None:
    before = Counter(item.intent for item in traffic(5, 4000, new_intent_share=0.0))
    after = Counter(item.intent for item in traffic(5, 4000, new_intent_share=0.2))
    assert before[CORPUS.new_intent] == 0
    assert 0.17 < after[CORPUS.new_intent] / 4000 < 0.23


def test_intents_are_uneven_yet_all_present() -> None:
    counts = Counter(item.intent for item in traffic(6, 3000, new_intent_share=0.0))
    assert len(counts) == len(CORPUS.labels) - 1
    assert max(counts.values()) > 4 * min(counts.values())
    assert min(counts.values()) >= 30


def test_some_texts_repeat_word_for_word_and_users_come_back() -> None:
    items = traffic(7, 3000)
    repeats = len(items) - len({item.text for item in items})
    assert 0.02 < repeats / len(items) < 0.08
    assert 300 < len({item.user for item in items}) <= 900


def test_three_thousand_messages_make_more_than_1800_near_duplicate_groups() -> None:
    index = rensa.RMinHashLSH(threshold=0.7, num_perm=128, num_bands=16)
    sketches: list[rensa.RMinHash] = []
    groups = 0
    for item in traffic(8, 3000):
        text = normalised(item.text)
        sketch = rensa.RMinHash(num_perm=128, seed=42)
        sketch.update([text[at : at + 5] for at in range(len(text) - 4)])
        near = any(sketches[key].jaccard(sketch) >= 0.7 for key in index.query(sketch))
        groups += not near
        index.insert(len(sketches), sketch)
        sketches.append(sketch)
    assert groups > 1800
