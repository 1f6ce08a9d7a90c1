"""The stepper: `paper.py` computes one token, and the reader walks through it line by line.

    python -m minidsv4.course.stepper FOLDER

The page's data are a trace of the real code, made when the page is written.
"""

from dataclasses import fields

from minidsv4 import paper
from minidsv4.course.pages import script, write_page
from minidsv4.course.stepper.example import CONFIG, IDS, SEED, WORDS, example_parameters
from minidsv4.course.stepper.folding import Steps
from minidsv4.course.stepper.listing import listings
from minidsv4.course.stepper.tracer import trace
from minidsv4.dims import GLOSSARY

NAMED_BY = ("kind", "site")  # arguments that tell one call of a function from another


def write_site(folder, notebooks=".."):
    """Write the stepper as static files, `index.html` among them; they need no server and no network.

    folder     is made where it is not there; files of the same names in it are replaced
    notebooks  address of the folder of the course's pages, seen from there
    returns    the path of its index.html
    """
    return write_page("stepper", folder, {"data.js": script("STEPPER", stepper_data() | {"notebooks": notebooks})})


def stepper_data():
    """Everything that the page shows, as plain values for JSON."""
    root, values, layout = trace(paper.model_logits, example_parameters(), CONFIG, list(IDS))
    walk = Steps(root)
    rows = renumber(walk.steps, values.rows)
    for call in walk.calls:
        call["label"] = label(walk, rows, call)
    return {
        "words": list(WORDS),
        "ids": list(IDS),
        "seed": SEED,
        "config": config_rows(),
        "axes": {letter: axis.meaning for letter, axis in GLOSSARY.items()},
        "functions": listings({call["line"] for call in walk.calls}),
        "statements": {step["line"]: layout.statements[step["line"]].last for step in walk.steps},
        "calls": walk.calls,
        "steps": walk.steps,
        "values": rows,
    }


def renumber(steps, rows):
    """Give the rows that are shown new numbers, in the order in which the steps show them; returns these rows."""
    kept, places = [], {}

    def place(number):
        if number not in places:
            row = rows[number]
            if "items" in row:
                row = {"items": [place(item) for item in row["items"]]}
            places[number] = len(kept)
            kept.append(row)
        return places[number]

    for step in steps:
        step["changed"] = {name: place(number) for name, number in step["changed"].items()}
        if "result" in step:
            step["result"] = place(step["result"])
    return kept


def label(walk, rows, call):
    """A call's name in the outline: its function, and its kind of layer or site where an argument says it."""
    first = walk.steps[call["first"]]
    words = [rows[first["changed"][name]]["text"].strip("'") for name in NAMED_BY if name in first["changed"]]
    return " ".join([call["function"], *words])


def config_rows():
    """Letter, meaning and size of the tiny model's axes that have a field, in the glossary's order."""
    names = {field.name for field in fields(CONFIG)} - {"compress_ratios"}
    return [
        (letter, axis.meaning, getattr(CONFIG, axis.field)) for letter, axis in GLOSSARY.items() if axis.field in names
    ]
