"""The house holds itself: one glossary for all axes, rooms that import downwards only, short files, no local paths."""

import ast
import re
from pathlib import Path

import pytest

from minidsv4.dims import GLOSSARY

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minidsv4"
SOURCES = sorted(PACKAGE.rglob("*.py"))
STREAMS = {"i", "j"}  # the old and the new stream of a mix
SUFFIX = re.compile(r"^[a-z]\w*_((?=[a-z0-9]*[A-Z])[A-Zij0-9]+)$")

# Low rooms first. `minidsv4` is the package's front: only __main__ lies above it.
ROOMS = [
    *(
        "dims",
        "interrupts",
        "files",
        "checksums",
        "options",
        "config_check",
        "config_json",
        "config_kinds",
        "config",
        "paper",
        "visibility",
        "stored_types",
        "unfilled",
        "ops",
        "fast",
        "lowbit",
        "model",
        "checkpoint",
        "train",
        "serve",
        "posttrain",
        "parallel",
    ),
    *("cost", "experiments", "bench", "course", "minidsv4", "__main__"),
]
LEVELS = {name: level for level, name in enumerate(ROOMS)}


# --- axes ---


def suffix_axes(name):
    """The axes that a name's suffix gives, such as ['B', 'T', 'D'] for x_BTD; None where it has no suffix."""
    found = SUFFIX.match(name)
    return list(found.group(1)) if found else None


def node_axes(node):
    """suffix_axes of a variable, an argument or an attribute in the syntax tree; None for anything else."""
    name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None)
    return suffix_axes(name) if isinstance(name, str) else None


def groups(side):
    """One side of a pattern as a list of axes, a parenthesis being one of them."""
    return re.findall(r"\([^)]*\)|\.\.\.|\S+", side)


def pattern_calls(tree):
    """(call, pattern) of every einops call; einsum's patterns come last, the others' second, torch's run together."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "id", None) or getattr(call.func, "attr", None)
        place = {"rearrange": 1, "reduce": 1, "repeat": 1, "einsum": -1}.get(name)
        if place is None or len(call.args) < 2:
            continue
        pattern = call.args[place]
        if name == "einsum" and isinstance(call.args[0], ast.Constant):
            pattern = ast.Constant(" ".join(call.args[0].value.replace(" ", "")).replace("- >", "->"))
        if isinstance(pattern, ast.Constant) and isinstance(pattern.value, str):
            yield call, pattern.value


def unknown_letters(call, pattern):
    """Axes of a pattern outside the glossary; a word is fine where the same call says that it is a number."""
    numbers = {word.arg for word in call.keywords if isinstance(word.value, ast.Constant)}
    known = {letter.lower() for letter in GLOSSARY} | STREAMS | numbers
    return [axis for axis in re.findall(r"[A-Za-z_]\w*", pattern) if axis not in known]


def rank_misfits(call, pattern):
    """Arguments of an einops call whose suffix has another number of axes than the pattern's left side."""
    sides = pattern.split("->")[0].split(",")
    tensors = [node for node in call.args if not isinstance(node, ast.Constant)]
    for node, side in zip(tensors, sides):
        axes, wanted = node_axes(node), groups(side)
        fits = axes is None or len(axes) == len(wanted) or ("..." in wanted and len(axes) >= len(wanted) - 1)
        if not fits:
            yield f"line {call.lineno}: {ast.unparse(node)} has {len(axes)} axes, not those of '{side.strip()}'"


def glossary_faults(source):
    """Every break of the glossary in a source text, a sentence each."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        strange = [letter for letter in node_axes(node) or [] if letter not in {*GLOSSARY, *STREAMS, *"0123456789"}]
        if strange:
            yield f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)} has axes outside the glossary: {strange}"
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            yield from result_misfits(node)
    for call, pattern in pattern_calls(tree):
        if strange := unknown_letters(call, pattern):
            yield f"line {call.lineno}: the pattern '{pattern}' has axes outside the glossary: {strange}"
        yield from rank_misfits(call, pattern)


def result_misfits(assign):
    """A target whose suffix has another number of axes than the right side of the pattern that makes it."""
    patterns = [pattern for call, pattern in pattern_calls(assign.value) if call is assign.value]
    for pattern in patterns:
        axes, made = node_axes(assign.targets[0]), groups(pattern.split("->")[-1])
        if axes is not None and "..." not in made and len(axes) != len(made):
            yield f"line {assign.lineno}: {ast.unparse(assign.targets[0])} is made with {len(made)} axes"


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_axis_letter_is_in_the_glossary_and_every_rank_fits_its_pattern(path):
    assert list(glossary_faults(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "bad",
    [
        "x_BTX = 1",
        "def f(x_BY): pass",
        "y = self.weight_DX",
        "rearrange(x, 'b t y -> b y t')",
        "rearrange(x, 'b t heads -> b heads t', heads=n)",
        "rearrange(x, 'B T -> T B')",
        "reduce(x_BTD, 'b t -> b', 'sum')",
        "rearrange(self.x_BTHK, 'b t (h k) -> b t h k', h=2)",
        "repeat(x_D, '... b t -> ... b t 1')",
        "einops.einsum(x_BTD, w_D, 'b t d, e d -> b t e')",
        "torch.einsum('btd,ed->bt', x_BT, w)",
        "torch.einsum('btx->bt', x)",
        "y_BT = rearrange(x, 'b t d -> b t d')",
    ],
)
def test_a_strange_letter_or_a_wrong_rank_is_caught(bad):
    assert list(glossary_faults(bad))


@pytest.mark.parametrize(
    "good",
    [
        "LARGEST_RMS = 1; some_name = 2",
        "x_BTHK = rearrange(x_BTD, 'b t (h k) -> b t h k', h=2)",
        "pairs = rearrange(x_BTK, '... (r pair) -> ... r pair', pair=2)",
        "einops.einsum(mix_BTij, x_BTND, 'b t i j, b t j d -> b t i d')",
        "torch.einsum('btd,ed->bte', x_BTD, w_ED)",
        "np.logaddexp.reduce(logits_V)",
    ],
)
def test_what_the_glossary_allows_is_let_through(good):
    assert list(glossary_faults(good)) == []


# --- rooms ---


def imported_rooms(source, parts):
    """Rooms of the package that a source text imports; parts is its module's dotted name as a tuple."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*parts[: len(parts) - node.level], *filter(None, [node.module])])
                if node.level
                else node.module
            )
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in (name.split(".") for name in names):
            if name[0] == "minidsv4":
                yield name[1] if len(name) > 1 and name[1] in LEVELS else "minidsv4"


def upward_imports(source, module):
    """Imports from a room that does not lie below the module's own, a sentence each; the package's front may do all."""
    parts = tuple(module.split("."))
    own = parts[1] if len(parts) > 1 else "minidsv4"
    if own not in LEVELS:
        return [f"{module} lies in no room: ROOMS lists them"]
    at_run_time = re.sub(r"^if TYPE_CHECKING:.*\n(?:    .*\n)+", "", source, flags=re.MULTILINE)
    rooms = {room for room in imported_rooms(at_run_time, parts) if LEVELS[room] > LEVELS[own]}
    return [f"{module} imports {room}, a room that lies above it" for room in sorted(rooms)]


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_that_lie_below_it(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert upward_imports(path.read_text(encoding="utf-8"), module) == []


def test_nothing_outside_the_course_imports_it():
    importers = set()
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "course" in imported_rooms(path.read_text(encoding="utf-8"), parts) and parts[1] != "course":
            importers.add(parts[1])
    assert importers == set()  # __main__ names its modules and loads the one it is asked for


@pytest.mark.parametrize(
    ("bad", "module"),
    [
        ("from minidsv4.course import plots", "minidsv4.cost.flops"),
        ("import minidsv4.model.rope", "minidsv4.paper"),
        ("from minidsv4.train.loop import train", "minidsv4.model.block"),
        ("from ..train import loop", "minidsv4.model.block"),
        ("from minidsv4 import Model", "minidsv4.train.loop"),
        ("import minidsv4 as v4", "minidsv4.course.show"),
        ("", "minidsv4.utils"),
    ],
)
def test_an_import_from_a_higher_room_is_caught(bad, module):
    assert upward_imports(bad, module)


def test_imports_from_lower_rooms_and_from_the_own_room_are_let_through():
    assert upward_imports("from minidsv4.model.rope import turn\nfrom .norm import norm", "minidsv4.model.block") == []
    assert upward_imports("from minidsv4.course import plots", "minidsv4.course.show") == []
    assert upward_imports("import minidsv4 as v4\nfrom minidsv4.course import plots", "minidsv4.__main__") == []


# --- sizes ---


def long_functions(source, most=45):
    """Functions of more than so many lines, their docstring included, a sentence each."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= most:
            yield f"{node.name} has {node.end_lineno - node.lineno + 1} lines"


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_has_more_than_45_lines(path):
    assert list(long_functions(path.read_text(encoding="utf-8"))) == []


def test_a_function_of_46_lines_is_caught_and_one_of_45_is_not():
    assert list(long_functions("def f():\n" + "    pass\n" * 45)) == ["f has 46 lines"]
    assert list(long_functions("def f():\n" + "    pass\n" * 44)) == []


def statements(source):
    """Numbers of the lines on which a statement begins, docstrings left out: a folded statement counts once."""

    def is_words(node):
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)

    nodes = ast.walk(ast.parse(source))
    return sorted({node.lineno for node in nodes if isinstance(node, ast.stmt) and not is_words(node)})


def test_the_model_has_fewer_than_1000_statements():
    found = {p.name: len(statements(p.read_text(encoding="utf-8"))) for p in (PACKAGE / "model").glob("*.py")}
    assert 500 < sum(found.values()) < 1000, found


def test_docstrings_comments_and_the_further_lines_of_a_statement_are_no_statements():
    source = '"""Words\n\nmore."""\n\nx = """1"""  # code\n# none\ndef f(\n    y,\n):\n    "doc"\n    return x\n'
    assert statements(source) == [5, 7, 11]


# --- no trace of one machine ---

LOCAL_PATH = re.compile(
    r"(?<![\w.:/~-])/(?:home|root|Users|tmp|work|mnt|opt|private|workspace)/\w|\b[A-Z]:\\\\?Users\b"
)
HOST = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|anaconda\.org|download\.pytorch\.org|(?:10|127|172|192)(?:\.\d+){3})\b"
)
PICTURE = re.compile(r"[A-Za-z0-9+/=]{200,}")  # base64 spells any short word sooner or later
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".ipynb", ".svg", ".json", ".cfg", ".txt", ""}


def text_files():
    """The repository's own text files."""
    folders = [ROOT / name for name in ("minidsv4", "tests", "notebooks", "figures", ".ci")]
    found = [path for folder in folders for path in folder.rglob("*")] + [path for path in ROOT.iterdir()]
    private = {"__pycache__", ".ipynb_checkpoints", ".git"}  # .git is a file in a worktree
    return [path for path in found if path.is_file() and path.suffix in TEXT and not private & set(path.parts)]


def local_traces(text, allowed=()):
    """Machine paths and hosts of package registries in a text."""
    text = PICTURE.sub("", text)
    found = [match.group() for pattern in (LOCAL_PATH, HOST) for match in pattern.finditer(text)]
    return [trace for trace in found if trace not in allowed]


def test_no_file_names_a_path_of_one_machine_or_a_package_registry():
    assert len(text_files()) > 10
    # The README says where Linux users find torch's small CPU build; pip does not know.
    allowed = {"README.md": (".".join(["download", "pytorch", "org"]),)}
    traces = {path: local_traces(path.read_text(encoding="utf-8"), allowed.get(path.name, ())) for path in text_files()}
    assert {path: found for path, found in traces.items() if found} == {}


@pytest.mark.parametrize("pieces", [("", "home", "me", "x.py"), ("see '", "tmp", "x"), ("", "Users", "me")])
def test_a_path_of_one_machine_is_caught(pieces):
    assert local_traces("/".join(pieces))


@pytest.mark.parametrize(
    "pieces", [("https://pypi", "org/simple"), ("10", "0", "0", "7"), ("files", "pythonhosted", "org")]
)
def test_the_host_of_a_package_registry_is_caught(pieces):
    assert local_traces(".".join(pieces))


def test_web_addresses_and_shebangs_are_no_machine_paths():
    words = "#!/usr/bin/env bash", "https:||example.org|work|x", "docs|home|y", "~|tmp|z"
    assert local_traces(" ".join(words).replace("|", "/")) == []  # apart, so that no path stands in this file


# --- files ---


def locale_calls(source):
    """Calls in a source text that read or write text in the encoding of the machine's locale."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
        words = [word.arg for word in call.keywords]
        modes = [node.value for node in call.args if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        binary = any(re.fullmatch(r"[rwax+]*b[rwax+]*", mode) for mode in modes)
        flags = isinstance(call.func, ast.Attribute) and ast.unparse(call.func) == "os.open"
        if name in ("open", "read_text", "write_text") and not (binary or flags or "encoding" in words):
            yield f"line {call.lineno}: {ast.unparse(call)}"


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_of_text_is_read_and_written_as_utf_8(path):
    """Kind: a file written on one machine that another one, of another locale, reads as other letters or not at all."""
    assert list(locale_calls(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("bad", ["path.read_text()", "path.write_text(text)", "open(path)", "path.open('a')"])
def test_a_text_in_the_locales_encoding_is_found(bad):
    assert len([*locale_calls(bad)]) == 1
    assert not [*locale_calls("open(path, 'r+b'); path.read_text(encoding='utf-8'); os.open(a, b)")]
