"""Questions to answer before the notebook goes on: open in a live notebook, with their answer folded elsewhere.

In a live notebook the cells below a question stay hidden until it is answered. The question's widget carries a style
sheet that hides them in JupyterLab 4 and Notebook 7; other front ends do not know its classes and hide nothing. Hidden
cells run like all others.
"""

import math
import re
from numbers import Real

from minidsv4.course.live import is_live, show_live

HIDE = (
    '<span class="minidsv4-open"></span>'
    "<style>.jp-Cell:has(.minidsv4-open) ~ .jp-Cell { display: none !important; }</style>"
    "<i>Answer before you read on. After a restart of the kernel, run this cell again.</i>"
)
_answered = {}  # question: whether the reader was right; a kernel runs one notebook


def predict(question, choices=None, right=None, number=None, within=None, unit="", *, why):
    """Ask the reader to predict what comes; shows a widget in a live notebook, question and folded answer elsewhere.

    question  what will happen, in Markdown
    choices   plain texts of which one is right; or none, and the answer is a number
    right     the right one of the choices
    number    the right number
    within    largest absolute difference that still counts as right
    unit      what the number counts, such as "tokens"
    why       the reason of the answer, in Markdown
    raises    ValueError for arguments of which no question can be made
    """
    from IPython.display import display

    if choices is None:
        if right is not None:
            raise ValueError(f"right={right!r} should be left out where there are no choices: give number and within")
        asked = NumberQuestion(question, number, within, unit, why)
    else:
        if number is not None or within is not None or unit:
            raise ValueError(f"number={number!r} should be left out where choices are given, within and unit too")
        asked = ChoiceQuestion(question, choices, right, why)
    if is_live():
        _ask(asked)
    else:
        display(asked)


def _check_text(field, text):
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{field}={text!r} should be a text")


class _Question:
    """What questions have in common: how they look where they are not asked live."""

    def __init__(self, question, why):
        _check_text("question", question)
        _check_text("why", why)
        self.question, self.why = question, why

    def _repr_markdown_(self):
        return f"**Predict:** {self.question}\n\n{self.folded()}"

    def folded(self):
        """The choices, and below them the answer, folded, in Markdown."""
        answer = f"<details><summary>Answer</summary>\n\n{self.solution()}\n\n</details>"
        return "\n\n".join([*self.options(), answer])

    def __repr__(self):
        return "\n".join([f"Predict: {self.question}", *self.options(), f"Answer: {self.solution()}"])


class ChoiceQuestion(_Question):
    """A question with a few answers to choose from."""

    def __init__(self, question, choices, right, why):
        super().__init__(question, why)
        if isinstance(choices, str) or len(choices) < 2 or len(set(choices)) < len(choices):
            raise ValueError(f"choices={choices!r} should be two or more different texts")
        for choice in choices:
            _check_text("choices", choice)
            if "$" in choice or "\n" in choice:
                raise ValueError(f"choices has {choice!r}, it should be one line without formulas: it labels a button")
        if right not in choices:
            raise ValueError(f"right={right!r} should be one of the choices {choices!r}")
        self.choices, self.right = choices, right

    def options(self):
        """The choices as a Markdown list, in one part."""
        return ["\n".join(f"- {choice}" for choice in self.choices)]

    def solution(self):
        """The right choice and its reason."""
        return f"**{self.right}.** {self.why}"

    def is_right(self, answer):
        """True for the right choice."""
        return answer == self.right


class NumberQuestion(_Question):
    """A question whose answer is a number."""

    def __init__(self, question, number, within, unit, why):
        super().__init__(question, why)
        if not isinstance(number, Real) or not math.isfinite(number):
            raise ValueError(f"number={number!r} should be a finite number where no choices are given")
        if not isinstance(within, Real) or not 0 <= within < math.inf:
            raise ValueError(f"within={within!r} should be the largest difference allowed, 0 or more")
        if not isinstance(unit, str):
            raise ValueError(f"unit={unit!r} should be a text such as 'tokens'")
        self.number, self.within, self.unit = number, within, unit

    def options(self):
        """Nothing to choose from: no part."""
        return []

    def solution(self):
        """The number with its unit, and its reason."""
        return f"**{f'{self.number:,.12g} {self.unit}'.strip()}.** {self.why}"

    def is_right(self, answer):
        """True within the tolerance."""
        return abs(answer - self.number) <= self.within

    def read(self, text):
        """The number that a reader typed, with or without the unit and commas between thousands; None for no number."""
        typed = text.strip().removesuffix(self.unit).strip() if self.unit else text.strip()
        if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", typed):
            typed = typed.replace(",", "")
        try:
            return float(typed) if math.isfinite(float(typed)) else None
        except ValueError:
            return None


# --- live ---


def _ask(asked):
    """Show the question's widget, or at once the verdict where this kernel has the answer already."""
    import ipywidgets
    from IPython.display import Markdown, display

    display(Markdown(f"**Predict:** {asked.question}"))
    curtain, verdict = ipywidgets.HTML(value=HIDE), ipywidgets.Output()

    def settle(was_right):
        _answered[asked.question] = was_right
        form.layout.display = "none"
        curtain.value = ""
        verdict.outputs = ({"output_type": "display_data", "data": _verdict(asked, was_right), "metadata": {}},)

    form = _form(asked, settle)
    show_live(ipywidgets.VBox([form, curtain, verdict]), asked.folded())
    if asked.question in _answered:
        settle(_answered[asked.question])


def _verdict(asked, was_right):
    """Right or not, why, and the score so far, as the data of an output."""
    score = f"{sum(_answered.values())} of {len(_answered)} so far"
    text = f"{'✓ Right.' if was_right else '✗ Not so.'} {asked.solution()}\n\n*{score}*"
    return {"text/markdown": text, "text/plain": text}


def _form(asked, settle):
    """Buttons for choices, a field for a number, and a button for who would rather be told."""
    import ipywidgets

    give_up = ipywidgets.Button(
        description="tell me the answer", layout={"width": "auto"}, tooltip="counts as not right"
    )
    give_up.on_click(lambda _: settle(False))
    make = _buttons if isinstance(asked, ChoiceQuestion) else _field
    return ipywidgets.VBox([*make(asked, settle), give_up], layout={"align_items": "flex-start"})


def _buttons(asked, settle):
    """One button for each choice."""
    import ipywidgets

    buttons = []
    for choice in asked.choices:
        button = ipywidgets.Button(description=choice.replace("`", ""), button_style="info", layout={"width": "auto"})
        button.on_click(lambda _, choice=choice: settle(asked.is_right(choice)))
        buttons.append(button)
    return buttons


def _field(asked, settle):
    """A text field with its unit and a button that hands it in."""
    import ipywidgets

    field = ipywidgets.Text(placeholder="a number", layout={"width": "12em"}, continuous_update=False)
    button = ipywidgets.Button(description="answer", button_style="info", layout={"width": "auto"})
    note = ipywidgets.Label(asked.unit)

    def hand_in(_):
        answer = asked.read(field.value)
        if answer is None:
            note.value = f"{asked.unit} (type a number, such as 12 or 0.5)".strip()
        else:
            settle(asked.is_right(answer))

    button.on_click(hand_in)
    field.observe(hand_in, names="value")  # Enter, or leaving the field
    return [ipywidgets.HBox([field, note, button])]
