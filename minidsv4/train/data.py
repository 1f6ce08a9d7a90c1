"""Batches of token ids: documents packed into rows, rows drawn into batches in an order that a seed decides.

`Batches` packs documents without gaps. `Mixture` draws from several sources in fixed shares, from rows that `Packed`
cut with sample-level masks in mind (report section 4.2.2). B batch, T tokens.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minidsv4.train.tokenizer import Tokenizer


class Batches:
    """Documents packed without gaps into rows of T + 1 tokens, drawn in an order that seed and step alone decide.

    Each document becomes `BOS text EOS`. An epoch is a random order of all rows, and a batch that its last rows do not
    fill takes the first of the next epoch. `at(step)` needs no earlier call, so a run goes on where it stopped.

    documents   token ids of each, without BOS and EOS
    batch_size  B
    length      T; a row has one token more, so that T tokens are predicted
    raises      ValueError where the documents do not fill one batch, and for sizes or a step that count nothing
    """

    def __init__(self, documents: Iterable[Sequence[int]], batch_size: int, length: int, seed: int):
        check_from("batches", "batch_size", batch_size, 1)
        check_from("batches", "length", length, 1)
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
        check_from("batches", "step", step, 0)
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        return self.rows[drawn(numbers, len(self.rows), self.seed)]


class Batch(NamedTuple):
    """Rows of tokens, and for each token the position in its row at which its document begins: both [B, T + 1].

    A token is predicted from the tokens of its own document only. Padding is a document of its own, token by token,
    so the targets that count are those with `first` equal to that of the token before; see `counted`.
    """

    ids_BT: Tensor
    document_BT: Tensor


def counted(document_BT: Tensor) -> Tensor:
    """Which of the T targets `ids[:, 1:]` belong to the document of the token before them: booleans [B, T]."""
    return document_BT[:, 1:] == document_BT[:, :-1]


def n_targets(batch: Tensor | Batch) -> int:
    """How many tokens of a batch are predicted: no first token of a row or a document, and no padding."""
    return batch[:, 1:].numel() if isinstance(batch, Tensor) else int(counted(batch.document_BT).sum())


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
            position = len(ids) % row
            room = row - position
            gap = min(-position % align, room) if room > 1 else room  # a document needs two tokens
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
        check_from("mixture", "batch_size", batch_size, 1)
        self.sources, self.shares, self.batch_size, self.seed = sources, shares, batch_size, seed

    def at(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        check_from("mixture", "step", step, 0)
        rows = [self.row(number) for number in range(step * self.batch_size, (step + 1) * self.batch_size)]
        return Batch(*(torch.stack(part) for part in zip(*rows)))

    def row(self, number: int) -> Batch:
        """Row `number` of the run."""
        block, number_in_block = divmod(number, sum(self.shares))
        pattern = [source for source, share in enumerate(self.shares) for _ in range(share)]
        order = torch.randperm(len(pattern), generator=_generator(self.seed, f"block {block}")).tolist()
        sources = [pattern[i] for i in order[: number_in_block + 1]]
        source = self.sources[sources[-1]]
        share = self.shares[sources[-1]]
        (row,) = drawn([block * share + sources.count(sources[-1]) - 1], len(source), source.seed)
        return Batch(*(part[row] for part in source.rows))


def check_from(call: str, name: str, value: object, least: int) -> None:
    """Refuse what is no whole number from the least one on."""
    if type(value) is not int or value < least:
        raise ValueError(f"{call}: {name} = {value!r} cannot be; it is a whole number from {least}")


def drawn(numbers: Sequence[int], n_rows: int, seed: int) -> list[int]:
    """The rows that draws number 0, 1, 2, ... take: each row once, in a random order, before any is taken again."""
    epochs = {number // n_rows for number in numbers}
    orders = {epoch: torch.randperm(n_rows, generator=_generator(seed, f"epoch {epoch}")) for epoch in epochs}
    return [int(orders[number // n_rows][number % n_rows]) for number in numbers]


def _generator(seed: int, purpose: str) -> torch.Generator:
    """Random numbers of their own for each purpose."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def eval_rows(documents: Iterable[Sequence[int]], length: int) -> Iterator[list[int]]:
    """Cut each document into rows that together predict each of its tokens once.

    yields  at most T + 1 tokens, the first being BOS or the last of the row before
    raises  ValueError for a length that is no whole number from 1
    """
    check_from("eval_rows", "length", length, 1)
    for ids in documents:
        tokens = [Tokenizer.bos_id, *ids]
        for start in range(0, len(tokens) - 1, length):
            yield tokens[start : start + length + 1]
