"""The tokenizer: byte-level byte-pair encoding, learned from any texts, kept as `tokenizer.json`."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from minidsv4.files import atomic_file

BOS, EOS = "<bos>", "<eos>"  # ids 0 and 1, as `Config` has them
SMALLEST_VOCABULARY = 2 + 256


class Tokenizer:
    """Byte-level byte-pair encoding: any text goes in and the same text comes out."""

    bos_id, eos_id = 0, 1

    def __init__(self, inner: tokenizers.Tokenizer):
        self.inner = inner
        inner.encode_special_tokens = True  # "<bos>" in a text is five letters, never the token
        self.markers = {token.content: id for id, token in inner.get_added_tokens_decoder().items() if token.special}
        self._marker = re.compile("(" + "|".join(map(re.escape, sorted(self.markers, key=len, reverse=True))) + ")")

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

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are spelt out: each of them is one id.

        Only for a text that was put together from checked parts, such as `chat_format.encode` makes.
        """
        pieces = self._marker.split(text)  # plain text and special tokens in turn
        ids = []
        for piece in pieces:
            ids += [self.markers[piece]] if piece in self.markers else self.encode(piece)
        return ids

    def decode_marked(self, ids: Sequence[int]) -> str:
        """The text of token ids with special tokens spelt out; half a character becomes U+FFFD."""
        return self.inner.decode(list(ids), skip_special_tokens=False)

    def with_markers(self, markers: Sequence[str]) -> "Tokenizer":
        """A tokenizer with these special tokens in place of its own; every id keeps its meaning.

        markers  the first two name BOS and EOS anew, the others follow the vocabulary in their order
        raises   ValueError for fewer than two, one given twice, or one that is a token already
        """
        markers = list(markers)
        if len(markers) < 2 or len(set(markers)) < len(markers) or any(not marker for marker in markers):
            raise ValueError(f"tokenizer: markers = {markers} cannot be; give BOS, EOS and others, all different")
        taken = [marker for marker in markers if self.inner.token_to_id(marker) is not None]
        if taken or len(self.markers) > 2:
            raise ValueError(
                f"tokenizer: markers = {taken or [*self.markers]} are tokens already; take a tokenizer without"
            )
        kept = json.loads(self.inner.to_str())
        vocabulary = kept["model"]["vocab"]
        for token, marker in zip(kept["added_tokens"], markers):
            vocabulary[marker] = vocabulary.pop(token["content"])
            token["content"] = marker
        inner = tokenizers.Tokenizer.from_str(json.dumps(kept))
        inner.add_special_tokens([tokenizers.AddedToken(marker, normalized=False) for marker in markers[2:]])
        return type(self)(inner)

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
