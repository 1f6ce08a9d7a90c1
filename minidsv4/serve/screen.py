"""Text on a terminal as it comes: broken between words, with colours where there are some, readable without."""

import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable
from typing import TextIO

COLOURS = {"thinking": "2", "calls": "36", "gives": "36", "note": "33"}  # SGR numbers by kind of text; others have none
PLAIN_WIDTH = 0  # no line is broken: the output is no terminal
_KEPT = "\n\u200c\u200d"  # line breaks, and what joins and parts letters
_WIDE = "WF"  # East Asian widths of two columns
FILLER = "\0"  # stands for the second column of a character while lines are measured; no harmless text holds it


class Screen:
    """A place to write to, whose lines are no longer than the terminal is wide.

    out      a text stream
    columns  width of a line, asked for before each line break, since a window can be resized; 0 breaks none
    colours  whether kinds of text have colours
    """

    def __init__(self, out: TextIO, columns: Callable[[], int], colours: bool):
        self.out, self.columns, self.colours = out, columns, colours
        self.column, self.kind = 0, ""
        self._word = ""

    @classmethod
    def of(cls, out: TextIO | None = None) -> "Screen":
        """The terminal that a stream is, or a plain stream; colours unless NO_COLOR is set or TERM is dumb."""
        out = out or sys.stdout
        terminal = out.isatty()
        colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb")
        columns = (lambda: max(10, shutil.get_terminal_size().columns)) if terminal else (lambda: PLAIN_WIDTH)
        return cls(out, columns, colours)

    def line(self, text: str = "", kind: str = "note") -> None:
        """A line of the program's own, after whatever was being written; long ones are broken between words."""
        self.end()
        width = self.columns()
        for part in map(harmless, text.split("\n")):
            for broken in wrapped(part, width) or [""] if width else [part]:
                self.out.write(self._coloured(kind, broken) + "\n")
        self.out.flush()

    def piece(self, kind: str, text: str) -> None:
        """A piece of a text that goes on; where the kind changes, a line names it."""
        if kind != self.kind:
            self.line(f"{kind}:", kind)
            self.kind = kind
        for character in harmless(text):
            if character in " \n" or unicodedata.east_asian_width(character) in _WIDE:
                self._write_word()
                self._write(character)
            else:
                self._word += character
        if not self.columns():  # nothing is broken, so nothing waits for the end of its word
            self._write_word()
        self.out.flush()

    def end(self) -> None:
        """End the text that was being written, and its line."""
        self._write_word()
        if self.column:
            self._write("\n")
        self.kind = ""
        self.out.flush()

    def _write_word(self) -> None:
        """Write the word that is complete; one that is longer than a line is cut."""
        word, self._word = self._word, ""
        width = self.columns()
        while width and cells(word) > width:
            self._write(word[:width])
            self._write("\n")
            word = word[width:]
        self._write(word)

    def _write(self, text: str) -> None:
        """Write a word, a space or a line break, on a new line where it does not fit; a full line needs no space."""
        width, size = self.columns(), cells(text)
        if text == "\n":
            self.column = 0
            self.out.write("\n")
        elif text and not (text == " " and width and self.column >= width):
            if width and self.column and self.column + size > width:
                self.out.write("\n")
                self.column = 0
            self.column += size
            self.out.write(self._coloured(self.kind, text))

    def _coloured(self, kind: str, text: str) -> str:
        """The text in the colour of its kind."""
        coloured = self.colours and kind in COLOURS and text.strip()
        return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m" if coloured else text


def cells(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(
        0
        if unicodedata.combining(character) or character in _KEPT
        else 1 + (unicodedata.east_asian_width(character) in _WIDE)
        for character in text
    )


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a harmless text that is broken between words, each of at most so many columns."""
    spread = "".join(character + FILLER * (cells(character) - 1) for character in text)
    return [line.replace(FILLER, "") for line in textwrap.wrap(spread, width, subsequent_indent="  ")]


def harmless(text: str) -> str:
    """The text with control characters shown as signs: what a model writes does not steer the terminal."""
    steering = ("Cc", "Cf", "Cs")
    return "".join(
        sign(character) if unicodedata.category(character) in steering and character not in _KEPT else character
        for character in text.expandtabs(4)
    )


def sign(character: str) -> str:
    """A sign for a control character: U+2400 and up for those of ASCII, else U+FFFD."""
    return chr(0x2400 + ord(character)) if ord(character) < 32 else "�"
