"""What surrounds an answer: reasoning before it, markdown, quotes, fences. It is forgiven.

What is left is compared whole with the labels, so that an answer that only mentions one is none.
"""

import html
import re
from collections.abc import Iterator, Sequence
from unicodedata import normalize

# The tags between which a model thinks.
_THOUGHTS = "think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|analysis"
_THOUGHT_TAG = re.compile(
    rf"<(?P<end>/)?(?:{_THOUGHTS})\s*>|\[(?P<end_too>/)?think\]|◁(?P<end_three>/)?think▷",
    re.IGNORECASE,
)
# Of the harmony format: <|channel|>analysis<|message|>...<|channel|>final<|message|>...
_CHANNEL, _MESSAGE, _FINAL = "<|channel|>", "<|message|>", "final"
# Tokens that a server should have taken off: <|im_end|>, <|eot_id|>, </s>, <end_of_turn>, <eos>.
_TOKEN = r"(?:<\|[\w ]{1,40}\|>|</?s>|<(?:end_of_turn|start_of_turn|eos|bos|pad)>|\[/?INST\])"
_TOKENS_BEFORE, _TOKEN_AFTER = re.compile(rf"(?:\s*{_TOKEN})+"), re.compile(rf"{_TOKEN}\s*$")
_FENCE = re.compile(r"^[ \t]*(```+(?!.*`)|~~~+)")
_INLINE_FENCE = re.compile(r"^```(?:(?:json|text|txt|plaintext)\b)?([^`]*)```$", re.IGNORECASE)

# What a field of an answer is called, where an answer is one field.
NAMES = (
    "label|labels|answer|final answer|the answer|category|class|classification|intent|topic|type|"
    "output|result|prediction|response|decision|verdict|choice|tag|"
    "kategorie|antwort|klasse|ergebnis|réponse|catégorie|étiquette|résultat|respuesta|categoría|"
    "etiqueta|resultado|resposta|categoria|etichetta|risposta|categorie|antwoord|ответ|категория|"
    "метка|класс|标签|类别|答案|分类|結果|结果|ラベル|回答|カテゴリ|분류|답변|레이블|التصنيف|الإجابة"
)  # fmt: skip
_MARKS = "[*_`\"']{1,3}"
# What opens before the name closes behind it, or behind the colon.
_NAMED = re.compile(
    rf"^(?:(?P<open>{_MARKS})(?:{NAMES})(?:{_MARKS}\s*[:=：]|\s*[:=：]\s*(?P=open))"
    rf"|(?:{NAMES})\s*[:=：])\s*(?=\S)",
    re.IGNORECASE,
)
_TAG = re.compile(r"^<([\w-]{1,40})>(?P<inside>.*)</\1\s*>$", re.DOTALL)
_BOXED = re.compile(r"^\$*\\(?:boxed|text|textbf|mathrm)\{(?P<inside>.*)\}\$*$", re.DOTALL)
_BULLET = re.compile(r"^(?:[-*+•·–—▪◦]|#{1,6}|>|\(?\d{1,2}[.)]|→|->|=>)\s+(?=\S)")
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
_INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad\u202a-\u202e]")
_UNSEEN = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_SEPARATORS = re.compile(r"(?<=[^\W_])[\s_\-‐-―]+(?=[^\W_])")
# A question mark is not among them: what asks does not answer.
_ENDS = ".,;:!。．！、，；：…｡․"
_QUOTES = "\"'`´‘’‚‛“”„‟«»‹›「」『』〝〞〟＂＇｀′″"
_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">", "（": "）", "【": "】", "〔": "〕", "《": "》",
             "〈": "〉", "［": "］", "〖": "〗", "⟨": "⟩"}  # fmt: skip
_EMPHASIS = "*_~"
MOST_LAYERS = 12
LONGEST = 4_096


def without_reasoning(text: str) -> str:
    """What a model says beside its thoughts. Of tags, the closing one alone ends thoughts too."""
    if _MESSAGE in text:
        head, _, said = text.rpartition(_MESSAGE)
        channel = head.rpartition(_CHANNEL)[2].strip() if _CHANNEL in head else _FINAL
        text = said if channel.startswith(_FINAL) else ""
    kept, at, thinks = list[str](), 0, False
    for tag in _THOUGHT_TAG.finditer(text):
        if any(tag.groups()):
            if not thinks:  # its beginning was part of the prompt
                kept.clear()
            at, thinks = tag.end(), False
        elif not thinks:
            kept.append(text[at : tag.start()])
            thinks = True
    return "".join(kept if thinks else [*kept, text[at:]])


def unwrapped(answer: str) -> str:
    """The answer without reasoning, byte-order mark, tokens of the server, and fences.

    Of a fence with prose around, what is inside, if there is one fence only.
    """
    text = _trimmed(without_reasoning(answer))
    if before := _TOKENS_BEFORE.match(text):
        text = text[before.end() :]
    while after := _TOKEN_AFTER.search(text[-64:]):
        text = text[: len(text) - len(after[0])].rstrip()
    text = _trimmed(text)
    if inline := _INLINE_FENCE.match(text):
        return _trimmed(inline[1])
    inside = _fenced(text.splitlines())
    return _trimmed("\n".join(inside[0])) if len(inside) == 1 else text


def _fenced(lines: Sequence[str]) -> list[list[str]]:
    """The lines inside each fence."""
    found, fence = list[list[str]](), ""
    for line in lines:
        mark = _FENCE.match(line)
        if not fence and mark:
            fence = mark[1]
            found.append([])
        elif fence and line.strip() == fence:
            fence = ""
        elif fence:
            if line.rstrip().endswith(fence):  # closed on the last line of what is inside
                line, fence = line.rstrip().removesuffix(fence), ""
            found[-1].append(line)
    return found


def readings(text: str) -> Iterator[str]:
    """The text, and it again without each layer of typography, the outermost first."""
    if len(text) > LONGEST:  # no label is
        return
    for _ in range(MOST_LAYERS):
        yield text
        inner = _peeled(text)
        if inner is None:
            inner = html.unescape(_ESCAPED.sub(r"\1", text))
            if inner == text:
                return
        if not inner:
            return
        text = inner


def _peeled(text: str) -> str | None:
    """Without its outermost layer; None where there is none."""
    trimmed = _trimmed(text)
    if trimmed != text or not text:
        return trimmed
    first, last = text[0], text[-1]
    if found := _TAG.match(text) or _BOXED.match(text):
        return found["inside"]
    if len(text) > 1 and ((first in _EMPHASIS and last == first) or last == _BRACKETS.get(first)):
        return text[1:-1]
    bare = text.rstrip(_ENDS + " \n")
    if first in _EMPHASIS and bare != text and bare[1:].endswith(first):
        return bare  # "*refund*." is no item of a list
    if found := _NAMED.match(text) or _BULLET.match(text):
        return text[found.end() :]
    if last in _ENDS:
        return text[:-1]
    if first in _QUOTES or last in _QUOTES:  # one of them may have been forgotten
        return text.strip(_QUOTES)
    return None


def _trimmed(text: str) -> str:
    return text.strip().strip(_UNSEEN).strip()


def folded(text: str) -> str:
    """For comparing: compatibility forms, letter case and the invisible make no difference."""
    return normalize("NFKC", normalize("NFKC", _INVISIBLE.sub("", text)).casefold())


def joined(text: str) -> str:
    """For comparing: nor do spaces, underscores and hyphens between words."""
    return _SEPARATORS.sub(" ", folded(text))
