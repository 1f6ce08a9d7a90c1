"""The calculator that a model may call: what Python computes, and a sentence for what is no arithmetic."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidsv4.serve.calculator import calculate

numbers = st.one_of(st.integers(0, 999).map(str), st.decimals(0, 99, places=2).map(str))
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", " - ", "*", "/", "  *  -"]), inner).map("".join),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=9,
)


@settings(max_examples=200, deadline=None, database=None)
@given(expressions)
def test_it_computes_what_python_computes(expression):
    exact = "".join(f"F('{part}')" if part[0].isdigit() else part for part in split(expression))
    try:
        expected = eval(exact, {"F": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="division by zero"):
            calculate(expression)
        return
    shown = calculate(expression)
    assert (
        shown == str(expected) if expected.denominator == 1 else float(shown) == pytest.approx(float(expected), 1e-11)
    )


def split(expression):
    """Numbers and signs."""
    parts = [""]
    for character in expression:
        number = character.isdigit() or character == "."
        if number and parts[-1][-1:].isdigit() | (parts[-1][-1:] == "."):
            parts[-1] += character
        else:
            parts.append(character)
    return parts[1:]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2+3*4", "14"),
        ("(2+3)*4", "20"),
        ("7 / 2", "3.5"),
        ("1/3", "0.333333333333"),
        ("2-3-4", "-5"),
        ("8/4/2", "1"),
        ("--5", "5"),
        ("2*-3", "-6"),
        (".5+1.", "1.5"),
        ("0.1+0.2", "0.3"),
        ("999999999999*999999999999", "999999999998000000000001"),
    ],
)
def test_signs_bind_as_in_school(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "character 0: '' stands where a number should"),
        ("2+", "character 2: '' stands where a number should"),
        ("2 3", "character 1: '3' stands where an operator or the end should"),
        ("(2", "character 2: '' stands where a closing bracket should"),
        ("2)", r"character 1: '\)' stands where"),
        ("1/(2-2)", "a division by zero has no value"),
        ("2**3", r"'\*3' stands where a number should"),
        ("__import__('os')", "__import__.* stands where a number should"),
        ("1e5", "'e5' stands where"),
        ("1" * 201, "no text of at most 200 characters"),
        (3, "no text of at most 200 characters"),
        ("(" * 99 + "1" + ")" * 98, "closing bracket"),
        ("٣+1", "stands where a number should"),
    ],
)
def test_what_is_no_arithmetic_is_refused(expression, says):
    with pytest.raises(ValueError, match=f"^calculate: .*{says}"):
        calculate(expression)


def test_the_deepest_expression_that_is_taken_needs_no_more_than_pythons_stack():
    assert calculate("(" * 99 + "1" + ")" * 99) == "1"
    assert calculate("-" * 199 + "1") == "-1"
