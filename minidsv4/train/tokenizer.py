"""The tokenizer: byte-level byte-pair encoding, learned from any texts, kept as `tokenizer.json`."""

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
