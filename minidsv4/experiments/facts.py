"""Facts planted in real text: `MARK key value` among Python source, and questions `ASK key` whose answer is the value.

B batch, T tokens. The text is the standard library of the running Python, by the shipped tokenizer; marks, keys and
values are ids of their own above it. A fact is three tokens that lie anywhere on the grid of compressed entries.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minidsv4.train.corpus import python_source
from minidsv4.train.data import check_from
from minidsv4.train.ship import pretrained_tokenizer

TEXT, KEYS, VALUES = 2048, 64, 32  # ids of the tokenizer, and how many keys and values there are
MARK, ASK, KEY = TEXT, TEXT + 1, TEXT + 2  # KEY and VALUE: the first id of each kind
VALUE = KEY + KEYS
VOCABULARY = VALUE + VALUES
CHANCE = 1 / VALUES
FACT, QUESTION = 3, 2  # tokens
CLEAR = 8  # tokens from a fact to the next, at least: a CSA entry pools as many, so none pools two whole facts
ASKED = 3  # how often a lesson asks for each of its facts
SLACK = 8  # tokens of text among a lesson's questions
END = 16  # tokens of text that are left behind the last fact of a haystack, at least
SHORTEST = 1024  # tokens that the needles of a haystack fit into


def source_ids() -> Tensor:
    """The standard library as token ids, in the order of its files; some 3 million."""
    corpus = python_source()
    files = pretrained_tokenizer().encode_all(file.text for file in (*corpus.train, *corpus.held_out))
    return torch.tensor([token for file in files for token in file])


class Lesson(NamedTuple):
    """Texts to learn from: facts in the first part, each asked for three times at the end.

    ids_BT  the texts
    asked   positions of the questions' last tokens, a row a text
    value   ids of the right answers, of the same shape
    """

    ids_BT: Tensor
    asked: Tensor
    value: Tensor


def lesson(source: Tensor, n: int, length: int, n_facts: int, seed: int, n_keys: int = KEYS) -> Lesson:
    """`n` texts with `n_facts` facts about different ones of the first `n_keys` keys; their values differ, too.

    raises  ValueError as `check_lesson`
    """
    check_lesson(len(source), n, length, n_facts, n_keys)
    n_questions = ASKED * n_facts
    body = length - QUESTION * n_questions - SLACK
    room = body - CLEAR * n_facts
    generator = torch.Generator().manual_seed(seed)

    def shuffled(n_of: int, *shape: int) -> Tensor:
        return torch.rand(*shape, n_of, generator=generator).argsort(-1)

    def places(n_of: int, room: int, width: int) -> Tensor:
        """Ascending places in a room, at least `width` apart."""
        return torch.randint(room + 1, (n, n_of), generator=generator).sort(1).values + width * torch.arange(n_of)

    start = torch.randint(len(source) - length, (n, 1), generator=generator)
    ids_BT = source[start + torch.arange(length)]
    fact = places(n_facts, room, CLEAR)
    key = KEY + shuffled(n_keys, n)[:, :n_facts]
    value = VALUE + shuffled(VALUES, n)[:, :n_facts]
    write(ids_BT, fact, torch.full_like(key, MARK), key, value)
    which = shuffled(n_facts, n, ASKED).flatten(1)
    question = body + places(n_questions, SLACK, QUESTION)
    write(ids_BT, question, torch.full_like(which, ASK), key.gather(1, which))
    return Lesson(ids_BT, question + 1, value.gather(1, which))


def check_lesson(n_source: int, n: int, length: int, n_facts: int, n_keys: int) -> None:
    """Refuse lessons that cannot be made of a source of so many tokens.

    raises  ValueError for more keys than there are, for more facts than keys or values, where facts and questions do
            not fit into the length, and where the length does not fit into the source
    """
    for name, value in {"n": n, "length": length, "n_facts": n_facts, "n_keys": n_keys}.items():
        check_from("lesson", name, value, 1)
    if n_keys > KEYS:
        raise ValueError(f"lesson: n_keys = {n_keys} cannot be; there are {KEYS} keys")
    most = min(n_keys, VALUES)
    if n_facts > most:
        raise ValueError(f"lesson: n_facts = {n_facts} cannot have {most} keys and values of their own; give fewer")
    shortest = (CLEAR + QUESTION * ASKED) * n_facts + SLACK
    if length < shortest:
        raise ValueError(f"lesson: length = {length} is too short for {n_facts} facts; give {shortest} or more")
    if length >= n_source:
        raise ValueError(f"lesson: length = {length} is no part of a source of {n_source} tokens; give a longer source")


def write(ids_BT: Tensor, place: Tensor, *tokens: Tensor) -> None:
    """Write tokens one after the other at these places of each text, in place."""
    for offset, token in enumerate(tokens):
        ids_BT.scatter_(1, place + offset, token)


class Haystack(NamedTuple):
    """One long text in which facts lie at many depths, and as many others that nobody asks for.

    ids_BT  the text [1, T]
    place   position of the first token of each fact that is asked for, ascending: every phase modulo 4 in turn
    key     its key's id
    value   its value's id
    """

    ids_BT: Tensor
    place: Tensor
    key: Tensor
    value: Tensor

    def depths(self) -> list[float]:
        """Where each fact lies: 0 is the beginning of the text, 1 its end."""
        return (self.place / self.ids_BT.shape[1]).tolist()

    def question(self, number: int) -> Tensor:
        """The tokens [1, 2] that ask for a fact.

        raises  ValueError for a number that no fact has
        """
        check_from("question", "number", number, 0)
        if number >= len(self.key):
            raise ValueError(f"question: number = {number!r} has no fact; there are {len(self.key)}, counted from 0")
        return torch.tensor([[ASK, int(self.key[number])]])


def entries(place: int, ratio: int) -> list[int]:
    """The CSA entries that pool the value of the fact that begins at this place: two, since they overlap.

    place   position of the fact's first token
    ratio   tokens per entry
    raises  ValueError for a place before the text, and for no ratio
    """
    check_from("entries", "place", place, 0)
    check_from("entries", "ratio", ratio, 1)
    window = (place + FACT - 1) // ratio
    return [window, window + 1]


def haystack(source: Tensor, length: int, seed: int, n_needles: int = KEYS // 2) -> Haystack:
    """A text of so many tokens, which begins anywhere in the source, and with it anew where it ends.

    n_needles  facts that are asked for, at equal distances; between each two lies a fact with another key
    raises     ValueError for a text that is too short, for more needles than half the keys, and for an empty source
    """
    whole = type(length) is int and type(n_needles) is int
    if not whole or length < SHORTEST or not 1 <= n_needles <= KEYS // 2:
        raise ValueError(
            f"haystack: {length!r} tokens with {n_needles!r} needles cannot be; give {SHORTEST} tokens or more, and 1 "
            f"to {KEYS // 2} needles"
        )
    if not len(source):
        raise ValueError("haystack: source = no tokens gives no text; give some")
    generator = torch.Generator().manual_seed(seed)
    start = int(torch.randint(len(source), (1,), generator=generator))
    ids_BT = source[(start + torch.arange(length)) % len(source)][None]
    stride = (length - END) / (2 * n_needles)  # of needles and others together
    place = (stride * torch.arange(2 * n_needles)).long() // 4 * 4
    place[::2] += torch.arange(n_needles) % 4
    place[1::2] += torch.randint(max(1, int(stride) - 2 * CLEAR), (n_needles,), generator=generator)
    key = KEY + torch.randperm(KEYS, generator=generator)[: 2 * n_needles]
    value = VALUE + torch.randint(VALUES, (2 * n_needles,), generator=generator)
    write(ids_BT, place[None], torch.full_like(key, MARK)[None], key[None], value[None])
    return Haystack(ids_BT, place[::2], key[::2], value[::2])
