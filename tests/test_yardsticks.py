"""The page that a learner opens, counted: `ops.py` and `model/`. What is counted is read, not aimed at.

Released model files of good name have 300 to 480 lines and 1 to 6 branches per 100 lines.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "minidsv4"
PAGE = [PACKAGE / "visibility.py", PACKAGE / "ops.py", *sorted((PACKAGE / "model").glob("*.py"))]
CHECKS = Path("model", "check.py")
EINOPS = {"einsum", "rearrange", "reduce", "repeat"}
RESHAPES = {"view", "flatten", "unflatten", "permute", "transpose", "reshape", "view_as", "mT", "T", "bmm", "baddbmm"}


# What `counts` found in earlier commits of this page, `model/*.py` then, and in a released model file of good name.
EARLIER = {
    "first model/ (9a6ec8f)": (1276, 833, 42, 265, 38, 162, 31, 15, 0),
    "before ops.py (773cb88)": (1630, 1106, 78, 359, 64, 251, 11, 75, 4),
    "gpt-oss torch/model.py": (496, 256, 19, 142, 2, 1, 0, 9, 0),  # openai/gpt-oss, 0568dfc; it uses torch.einsum
}


def counts(source: str) -> dict[str, int]:
    """What the house style counts in one file."""
    found = dict.fromkeys(
        ("lines", "code", "branches", "assignments", "pairs", "wide", "einops", "reshapes", "functions"), 0
    )
    found["lines"] = source.count("\n")
    found["wide"] = sum(len(line) >= 100 for line in source.splitlines())
    tree = ast.parse(source)
    found["code"] = len({node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)})
    for node in ast.walk(tree):
        found["branches"] += isinstance(node, (ast.If, ast.IfExp))
        found["branches"] += len(node.ifs) if isinstance(node, ast.comprehension) else 0
        found["assignments"] += isinstance(node, ast.Assign)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            found["pairs"] += isinstance(node.targets[0], ast.Tuple)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found["einops"] += node.func.id in EINOPS
        found["reshapes"] += isinstance(node, ast.Attribute) and node.attr in RESHAPES
        if isinstance(node, ast.ClassDef):
            found["functions"] += any("Function" in ast.unparse(base) for base in node.bases)
    return found


def test_the_page_reads_like_a_page(capsys):
    rows = {path.relative_to(PACKAGE): counts(path.read_text(encoding="utf-8")) for path in PAGE}
    total = {name: sum(row[name] for row in rows.values()) for name in next(iter(rows.values()))}
    earlier = {name: dict(zip(total, numbers, strict=True)) for name, numbers in EARLIER.items()}
    with capsys.disabled():
        print()
        for name, row in {**rows, "together": total, **earlier}.items():
            print(f"{name!s:28}", *(f"{count} {number:4}" for count, number in row.items()))
    assert total["reshapes"] == 0 and total["functions"] == 0
    assert total["einops"] >= 40
    assert total["pairs"] < 0.1 * total["assignments"]
    reading = {name: total[name] - rows[CHECKS][name] for name in ("branches", "code")}  # one refusal is one branch
    assert 100 * reading["branches"] < 6 * reading["code"]
    assert total["wide"] == rows[CHECKS]["wide"]  # the sentences of refusals


LISTED = [path for path in (PACKAGE / "paper.py", *PAGE) if path != PACKAGE / CHECKS]


@pytest.mark.parametrize("path", LISTED, ids=lambda path: path.stem)
def test_every_line_fits_the_88_columns_that_a_listing_in_jupyterlab_shows_unbroken(path):
    assert [line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 88] == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("x.view(3)", "reshapes"),
        ("y = x.mT @ x", "reshapes"),
        ("class A(torch.autograd.Function): pass", "functions"),
        ("a, b = 1, 2", "pairs"),
        ("a = 1 if b else 2", "branches"),
        ("rearrange(x, 'b t -> t b')", "einops"),
    ],
)
def test_each_count_sees_what_it_counts(source, name):
    assert counts(source)[name] == 1
