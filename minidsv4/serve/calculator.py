"""A calculator that a model may call: whole and decimal numbers, + - * / and brackets, exact until it is written."""

import re
from fractions import Fraction

CALCULATE = {  # the function schema, as `chat_format.encode` takes it
    "name": "calculate",
    "description": "The value of an arithmetic expression of numbers, + - * / and brackets.",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
    },
}
MOST_CHARACTERS = 200  # bounds the depth of brackets and the length of numbers as well
DIGITS = 12
_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]*)?|\.[0-9]+)|([-+*/()]))")


def calculate(expression: str) -> str:
    """The value in digits: all of them where it is whole, else twelve.

    raises  ValueError for what is no such expression, names the place, and for a division by zero
    """
    if not isinstance(expression, str) or len(expression) > MOST_CHARACTERS:
        raise ValueError(f"calculate: the expression is no text of at most {MOST_CHARACTERS} characters")
    value = _Reader(expression).value()
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.{DIGITS}g}"


class _Reader:
    """Reads an expression from the left: sums of products of factors."""

    def __init__(self, expression: str):
        self.text, self.place = expression.rstrip(), 0

    def value(self) -> Fraction:
        """The value of the whole text."""
        value = self.sum()
        if self.place < len(self.text):
            raise ValueError(self.misplaced("an operator or the end"))
        return value

    def sum(self) -> Fraction:
        """Products with + and - between them."""
        total = self.product()
        while sign := self.take("+", "-"):
            term = self.product()
            total = total + term if sign == "+" else total - term
        return total

    def product(self) -> Fraction:
        """Factors with * and / between them."""
        total = self.factor()
        while sign := self.take("*", "/"):
            factor = self.factor()
            if sign == "/" and factor == 0:
                raise ValueError(f"calculate: character {self.place}: a division by zero has no value")
            total = total * factor if sign == "*" else total / factor
        return total

    def factor(self) -> Fraction:
        """A number, or an expression in brackets, with signs before it."""
        sign = self.take("+", "-")
        if sign:
            factor = self.factor()
            return factor if sign == "+" else -factor
        if self.take("("):
            inner = self.sum()
            if not self.take(")"):
                raise ValueError(self.misplaced("a closing bracket"))
            return inner
        found = _TOKEN.match(self.text, self.place)
        if found is None or found[1] is None:
            raise ValueError(self.misplaced("a number"))
        self.place = found.end()
        return Fraction(found[1])

    def take(self, *signs: str) -> str:
        """The next sign, if it is one of these, else ''."""
        found = _TOKEN.match(self.text, self.place)
        if found is None or found[2] not in signs:
            return ""
        self.place = found.end()
        return found[2]

    def misplaced(self, right: str) -> str:
        """What is said of a text that cannot be read on."""
        rest = self.text[self.place : self.place + 12].strip()
        return f"calculate: character {self.place}: {rest!r} stands where {right} should"
