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
    return f"{number(notebook)} {exercise}"


def number(notebook):
    """The number of a notebook by its name, behind its folder where it has one: 01, problems 1."""
    folder, _, stem = notebook.rpartition("/")
    return " ".join([*filter(None, [folder]), stem.partition("_")[0]])


def reasons(found):
    """Pairs (what, reason) of what earns a student nothing: an exercise, or a notebook whose exercises have one reason.

    found  (notebook, exercise) = Score of the student; "all" stands for all of them where all have one reason
    """
    if len({notebook for notebook, _ in found}) > 1 and (told := _only_reason(found.values())):
        return [("all", told)]
    pairs = []
    for notebook in dict.fromkeys(notebook for notebook, _ in found):
        own = {column: score for column, score in found.items() if column[0] == notebook}
        told = _only_reason(own.values())
        pairs += [(number(notebook), told)] if told else [(short(column), own[column].reason) for column in own]
    return [(what, reason) for what, reason in pairs if reason]


def _only_reason(scores):
    """The reason that all of several Scores have; an empty text where they differ or there is one Score."""
    told = {score.reason for score in scores}
    return told.pop() if len(told) == 1 and len(scores) > 1 else ""


def as_markdown(scores):
    """Two tables in Markdown: points, and the reasons where there are none."""
    heads = columns(scores)
    most = {(score.notebook, score.exercise): score.most for score in scores}
    body = [("of", *(str(most[column]) for column in heads), str(sum(most.values())))]
    for student, found in rows(scores).items():
        points = [found[column].points for column in heads]
        body.append((_cell(student), *map(str, points), str(sum(points))))
    points = Table(("student", *map(short, heads), "sum"), body).markdown()
    why = []
    for student, found in rows(scores).items():
        why += [(_cell(student), what, _cell(reason)) for what, reason in reasons(found)]
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
        why = [f"{what}: {_cell(reason)}" for what, reason in reasons(found)]
        writer.writerow([_harmless(student), *points, sum(points), _harmless("; ".join(why))])
    return stream.getvalue()


def _harmless(text):
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
