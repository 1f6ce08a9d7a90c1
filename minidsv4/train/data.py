"""What a model reads: Python source found on this machine, programs generated from a seed, tokens, packed batches.

`Batches` packs documents without gaps. `Mixture` draws from several sources in fixed shares, from rows that `Packed`
cut with sample-level masks in mind (report section 4.2.2). More programs and long-range tasks are in `tasks.py`.

B batch, T tokens. The released model's own data are not disclosed; these are this package's. Real source differs
between patch releases of Python, so whatever must come out the same everywhere uses the generated programs.
"""

import hashlib
import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
from torch import Tensor

from minidsv4.files import atomic_file

LEFT_OUT = {  # folders, by name: tests, what others installed, and what is tables rather than programs
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"),
}
HELD_OUT_SHARE = 1 / 20  # of the files


class SourceFile(NamedTuple):
    """One file of the corpus: its path below the corpus root and its text."""

    name: str
    text: str


class Corpus(NamedTuple):
    """Source to learn from and source that the model never sees, split by file."""

    train: list[SourceFile]
    held_out: list[SourceFile]

    def n_bytes(self) -> int:
        """Bytes of all files, both parts."""
        return sum(len(file.text.encode()) for file in (*self.train, *self.held_out))


def python_source(root: str | Path | None = None) -> Corpus:
    """Every distinct UTF-8 Python file below a folder, read where it lies, in the order of their paths.

    A file is held out where the hash of its text says so, so the split does not depend on names or on other files.

    root     folder; None is the standard library of the running interpreter
    returns  Corpus, without folders of tests and of installed packages
    raises   ValueError where the folder holds fewer than two files to use
    """
    root = Path(root or sysconfig.get_paths()["stdlib"])
    corpus, seen = Corpus([], []), set()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        text = _text(path) if not LEFT_OUT.intersection(path.relative_to(root).parts) else None
        digest = hashlib.sha256((text or "").encode()).digest()
        if not text or digest in seen:
            continue
        seen.add(digest)
        part = corpus.held_out if digest[0] < 256 * HELD_OUT_SHARE else corpus.train
        part.append(SourceFile(path.relative_to(root).as_posix(), text))
    if not corpus.train or not corpus.held_out:
        raise ValueError(f"corpus: {len(seen)} Python files below {root.name!r} are too few; give another folder")
    return corpus


def _text(path: Path) -> str | None:
    """The text of a file with its line ends as they are; None where it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None


class Program(NamedTuple):
    """A small valid Python program, and what it prints."""

    source: str
    output: str


def programs(seed: int, n: int) -> list[Program]:
    """`n` small programs, the same on every machine; fewer of the same seed are the first of more.

    seed     any integer
    returns  distinct in most cases; each runs in microseconds and prints one to six lines
    """
    if n < 0:
        raise ValueError(f"programs: n = {n} cannot be made; it counts programs, from 0")
    return [run(_write(random.Random(f"{seed}/{number}"))) for number in range(n)]


def run(source: str) -> Program:
    """Run a source that `_write` made, and collect what it prints."""
    lines: list[str] = []
    exec(source, {"print": lambda *values: lines.append(" ".join(map(str, values)))})
    return Program(source, "".join(f"{line}\n" for line in lines))


_WORDS = "red green blue cat dog bird sun moon star tree leaf root north south east west".split()
_NAMES = "a b c n x y total value items words".split()
# {i}, {j}: numbers from 1 to 20; {k}: 2 to 5; {l}: a list of numbers; {w}: a word; {s}: a list of words; {v}: a name.
_TEMPLATES = """\
{v} = {i} + {j} * {k}
print({v})
print({v} % {k})
---
{v} = {l}
for item in {v}:
    if item % {k} == 0:
        print(item)
print(len({v}))
---
total = 0
for number in range({k}, {i} + {k}):
    total += number * {k}
print(total)
---
def double(x):
    return {k} * x + {j}


for x in range({k}):
    print(double(x))
---
def largest(values):
    best = values[0]
    for value in values:
        if value > best:
            best = value
    return best


print(largest({l}))
---
def gcd(a, b):
    while b:
        a, b = b, a % b
    return a


print(gcd({i} * {k}, {j} * {k}))
---
def fact(n):
    if n < 2:
        return 1
    return n * fact(n - 1)


print(fact({k}))
print(fact({k} + 1))
---
def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


print(fib({i}))
---
{v} = '{w}'
print({v}.upper())
print(len({v}))
print({v}[::-1])
---
words = {s}
print(sorted(words))
print(' '.join(words))
print([len(word) for word in words])
---
{v} = sorted({l})
print({v})
print({v}[0], {v}[-1])
print(sum({v}))
---
counts = {{}}
for letter in '{w}':
    counts[letter] = counts.get(letter, 0) + 1
print(counts)
---
{v} = [x * x for x in {l} if x > {i}]
print({v})
print(len({v}))
---
n, steps = {i} + {k}, 0
while n > 1:
    n = n // 2 if n % 2 == 0 else 3 * n + 1
    steps += 1
print(steps)
---
pairs = dict(zip({s}, {l}))
for key in pairs:
    print(key, pairs[key])
---
class Counter:
    def __init__(self, start):
        self.value = start

    def add(self, step):
        self.value += step
        return self.value


counter = Counter({i})
print(counter.add({j}))
print(counter.add({k}))
""".split("---\n")


def _write(chance: random.Random) -> str:
    """One source: a template with its blanks filled. Only `random()` is used, whose numbers Python never changes."""

    def below(n: int) -> int:
        return int(chance.random() * n)

    def pick(choices: Sequence[str]) -> str:
        return choices[below(len(choices))]

    numbers = [below(30) for _ in range(3 + below(3))]
    words = [pick(_WORDS) for _ in range(2 + below(3))]
    blanks = dict(i=1 + below(20), j=1 + below(20), k=2 + below(4), l=numbers, w=pick(_WORDS), s=words, v=pick(_NAMES))
    return pick(_TEMPLATES).format(**blanks)


BOS, EOS = "<bos>", "<eos>"  # ids 0 and 1, as `Config` has them
SMALLEST_VOCABULARY = 2 + 256


class Tokenizer:
    """Byte-level byte-pair encoding: any text goes in and the same text comes out."""

    bos_id, eos_id = 0, 1

    def __init__(self, inner: tokenizers.Tokenizer):
        self.inner = inner
        inner.encode_special_tokens = True  # "<bos>" in a text is five letters, never the token

    def __len__(self) -> int:
        return self.inner.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn which pairs to join; the same texts give the same tokenizer.

        vocab_size  at most so many tokens: 2 special ones, 256 bytes, the rest joined pairs
        raises      ValueError below 258
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(f"tokenizer: vocab_size = {vocab_size} is too small; bytes and 2 special tokens need 258")
        inner = tokenizers.Tokenizer(tokenizers.models.BPE())
        inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = tokenizers.decoders.ByteLevel()
        alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS and EOS."""
        return self.inner.encode(text).ids

    def encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; BOS and EOS are left out, half a character becomes U+FFFD."""
        return self.inner.decode(list(ids), skip_special_tokens=True)

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`, which `tokenizers` and transformers open as well."""
        with atomic_file(path) as scratch:
            scratch.write_text(self.inner.to_str(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json`.

        raises  ValueError where there is none, or none that can be read
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"tokenizer: there is no {path.name} in {path.parent.name!r}; `tour` writes one")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"tokenizer: {path.name} cannot be read ({error}); it may be cut off") from error


class Batches:
    """Documents packed without gaps into rows of T + 1 tokens, drawn in an order that seed and step alone decide.

    Each document becomes `BOS text EOS`. Every row is drawn once before any is drawn again, and `at(step)` needs no
    earlier call, so a run goes on where it stopped.

    documents   token ids of each, without BOS and EOS
    batch_size  B
    length      T; a row has one token more, so that T tokens are predicted
    raises      ValueError where the documents do not fill one batch
    """

    def __init__(self, documents: Iterable[Sequence[int]], batch_size: int, length: int, seed: int):
        documents = list(documents)
        order = torch.randperm(len(documents), generator=_generator(seed, "documents")).tolist()
        stream = [token for i in order for token in (Tokenizer.bos_id, *documents[i], Tokenizer.eos_id)]
        n_rows = len(stream) // (length + 1)
        if n_rows < batch_size:
            raise ValueError(
                f"batches: {len(stream)} tokens fill {n_rows} rows of {length + 1}; batch_size = {batch_size} needs "
                f"{batch_size * (length + 1)} tokens"
            )
        self.rows = torch.tensor(stream[: n_rows * (length + 1)]).view(n_rows, length + 1)
        self.batch_size, self.seed = batch_size, seed

    def at(self, step: int) -> Tensor:
        """The batch of a step, from 0: token ids [B, T + 1]."""
        per_epoch = len(self.rows) // self.batch_size
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(self.rows), generator=_generator(self.seed, f"epoch {epoch}"))
        return self.rows[order[place * self.batch_size : (place + 1) * self.batch_size]]


class Batch(NamedTuple):
    """Rows of tokens, and for each token the place in its row at which its document begins: both [B, T + 1].

    A token is predicted from the tokens of its own document only. Padding is a document of its own, token by token,
    so the targets that count are those with `first` equal to that of the token before; see `counted`.
    """

    ids_BT: Tensor
    document_BT: Tensor


def counted(document_BT: Tensor) -> Tensor:
    """Which of the T targets `ids[:, 1:]` belong to the document of the token before them: booleans [B, T]."""
    return document_BT[:, 1:] == document_BT[:, :-1]


class Packed:
    """Documents laid end to end into rows of T + 1 tokens, each beginning at a multiple of `align` in its row.

    With the least common multiple of the compression ratios no compressed entry then pools tokens of two documents.
    What does not fit goes on at the start of the next row. Each document becomes `BOS text EOS`; padding is EOS.

    documents  token ids of each, without BOS and EOS
    length     T; a row has one token more, so that T tokens are predicted
    align      tokens; 1 leaves no gap
    raises     ValueError where the documents do not fill one row
    """

    def __init__(self, documents: Iterable[Sequence[int]], length: int, seed: int, align: int = 1):
        documents, self.seed = list(documents), seed
        if align < 1 or length < 2:
            raise ValueError(f"packed: align = {align} and length = {length} make no rows; from 1 and from 2 they do")
        order = torch.randperm(len(documents), generator=_generator(seed, "documents")).tolist()
        row, ids, starts = length + 1, [], []
        for i in order:
            place = len(ids) % row
            gap = row - place if place > length - 1 else min(-place % align, row - place)  # a document needs two tokens
            tokens = (Tokenizer.bos_id, *documents[i], Tokenizer.eos_id)
            starts += [*range(len(ids), len(ids) + gap), *[len(ids) + gap] * len(tokens)]
            ids += [*[Tokenizer.eos_id] * gap, *tokens]
        n_rows = len(ids) // row
        if not n_rows:
            raise ValueError(f"packed: {len(ids)} tokens do not fill a row of {row}; give more documents")
        ids_BT, start_BT = (torch.tensor(part[: n_rows * row]).view(n_rows, row) for part in (ids, starts))
        row_B1 = torch.arange(n_rows)[:, None] * row
        self.rows = Batch(ids_BT, (start_BT - row_B1).clamp(min=0))  # what began in an earlier row begins at 0 here

    def __len__(self) -> int:
        return len(self.rows.ids_BT)

    def places(self, numbers: Sequence[int]) -> list[int]:
        """The rows that are drawn as number 0, 1, 2, ...: each once, in a random order, before any is drawn again."""
        epochs = {number // len(self) for number in numbers}
        orders = {e: torch.randperm(len(self), generator=_generator(self.seed, f"epoch {e}")) for e in epochs}
        return [int(orders[number // len(self)][number % len(self)]) for number in numbers]


class Mixture:
    """Batches whose rows come from several sources, in shares that hold exactly over every `sum(shares)` rows.

    `at(step)` needs no earlier call, so a run goes on where it stopped.

    sources     rows of equal length
    shares      whole numbers, one a source, such as (7, 3)
    batch_size  B
    raises      ValueError for shares that do not fit
    """

    def __init__(self, sources: Sequence[Packed], shares: Sequence[int], batch_size: int, seed: int):
        if len(shares) != len(sources) or min(shares) < 0 or not sum(shares):
            raise ValueError(
                f"mixture: shares = {list(shares)} do not fit {len(sources)} sources; one number from 0 each"
            )
        self.sources, self.shares, self.batch_size, self.seed = sources, shares, batch_size, seed

    def at(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        rows = [self.row(number) for number in range(step * self.batch_size, (step + 1) * self.batch_size)]
        return Batch(*(torch.stack(part) for part in zip(*rows)))

    def row(self, number: int) -> Batch:
        """Row `number` of the run."""
        block, place = divmod(number, sum(self.shares))
        pattern = [source for source, share in enumerate(self.shares) for _ in range(share)]
        order = torch.randperm(len(pattern), generator=_generator(self.seed, f"block {block}")).tolist()
        drawn = [pattern[i] for i in order[: place + 1]]
        source, share = self.sources[drawn[-1]], self.shares[drawn[-1]]
        (row,) = source.places([block * share + drawn.count(drawn[-1]) - 1])
        return Batch(*(part[row] for part in source.rows))


def _generator(seed: int, purpose: str) -> torch.Generator:
    """Random numbers of their own for each purpose."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def eval_rows(documents: Iterable[Sequence[int]], length: int) -> Iterator[list[int]]:
    """Cut each document into rows that together predict each of its tokens once.

    yields  at most T + 1 tokens, the first being BOS or the last of the row before
    """
    for ids in documents:
        tokens = [Tokenizer.bos_id, *ids]
        for start in range(0, len(tokens) - 1, length):
            yield tokens[start : start + length + 1]
