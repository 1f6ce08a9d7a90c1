"""Text of token ids as they come: one step a token, and no character before all of its bytes are there."""

import codecs

import tokenizers

from minidsv4.serve.checks import shown
from minidsv4.train.tokenizer import Tokenizer


def byte_alphabet() -> dict[str, int]:
    """The byte of each character of a byte-level vocabulary: its own where printable in Latin-1, else from 256 up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + number): byte for number, byte in enumerate(others)}


class IncrementalDecoder:
    """Decoder of a text that grows: `decoder.step(token)` gives the characters that this token completes.

    All pieces together are `tokenizer.decode(ids)`, but that an unfinished last character is not shown. The cost of a
    step does not grow with the text.

    tokenizer  a `Tokenizer` over bytes
    markers    special tokens are spelt out; else they have no text
    raises     ValueError for another kind of tokenizer
    """

    def __init__(self, tokenizer: Tokenizer, markers: bool = False):
        bytewise = tokenizers.decoders.ByteLevel
        if not isinstance(tokenizer, Tokenizer) or not isinstance(tokenizer.inner.decoder, bytewise):
            raise ValueError(
                f"complete: tokenizer = {shown(tokenizer)} is not one over bytes; give pretrained_tokenizer(), or "
                "Tokenizer.load('tokenizer.json') of byte-level pairs"
            )
        self.inner = tokenizer.inner
        self.markers = markers
        self.bytes_of = byte_alphabet()
        self.added = self.inner.get_added_tokens_decoder()
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token: int) -> str:
        """The characters that one more token id completes; unknown tokens have none."""
        return self.utf8.decode(self.token_bytes(token))

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token id stands for."""
        if token in self.added:
            hidden = self.added[token].special and not self.markers
            return b"" if hidden else self.added[token].content.encode()
        return bytes(self.bytes_of[character] for character in self.inner.id_to_token(token) or "")
