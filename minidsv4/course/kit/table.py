"""The table of points: a row for each student, a column for each exercise, and why points are missing."""

import csv
import io

from minidsv4.course.tables import Table


def columns(scores):
    """Pairs (notebook, exercise) in the order of the scores."""
    return list(dict.fromkeys((score.notebook, score.exercise) for score in scores))


def rows(scores):
    """Student = {(notebook, exercise): Score}, in the order of the scores."""
    found = {}
    for score in scores:
        found.setdefault(score.student, {})[score.notebook, score.exercise] = score
    return found


def short(column):
    """A column's heading: the notebook's number and the exercise."""
    notebook, exercise = column
    folder, _, stem = notebook.rpartition("/")
    return " ".join([*filter(None, [folder]), stem.partition("_")[0], exercise])


def as_markdown(scores):
    """Two tables in Markdown: points, and the reasons where there are none."""
    heads = columns(scores)
    most = {(score.notebook, score.exercise): score.most for score in scores}
    body = [("of", *(str(most[column]) for column in heads), str(sum(most.values())))]
    for student, found in rows(scores).items():
        points = [found[column].points for column in heads]
        body.append((_cell(student), *map(str, points), str(sum(points))))
    points = Table(("student", *map(short, heads), "sum"), body).markdown()
    missed = [score for score in scores if score.reason]
    why = [(_cell(score.student), short((score.notebook, score.exercise)), _cell(score.reason)) for score in missed]
    return f"{points}\n\n{Table(('student', 'exercise', 'why no points'), why).markdown()}" if why else points


def _cell(text):
    """Text in one line that Markdown takes for text: no end of a cell, no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def as_csv(scores):
    """The same as comma-separated values: points, their sum, and all reasons in the last column."""
    heads = columns(scores)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["student", *map(short, heads), "sum", "why no points"])
    for student, found in rows(scores).items():
        points = [found[column].points for column in heads]
        reasons = [f"{short(column)}: {_cell(found[column].reason)}" for column in heads if found[column].reason]
        writer.writerow([_harmless(student), *points, sum(points), _harmless("; ".join(reasons))])
    return stream.getvalue()


def _harmless(text):
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
