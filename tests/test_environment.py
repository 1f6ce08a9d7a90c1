"""pip and conda install the same things, and each room imports only what its extra of pip brings."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"torch": "pytorch-cpu"}  # conda-forge calls the CPU build so


def conda_faults(environment, project):
    """Where the two texts disagree, a sentence each; empty where they agree."""
    environment, project = yaml.safe_load(environment), tomllib.loads(project)["project"]
    listed = [item for item in environment["dependencies"] if isinstance(item, str)]
    by_pip = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    oldest = re.fullmatch(r">=(\d+\.\d+)", project["requires-python"]).group(1)
    ranges = dict(re.match(r"([\w-]+)(.*)", text).groups() for text in project["dependencies"])
    wanted = [f"python={oldest}", "pip", *(f"{conda}{ranges[name]}" for name, conda in CONDA_NAMES.items())]
    faults = []
    if environment["name"] != project["name"]:
        faults.append(f"the environment is called {environment['name']}")
    if environment["channels"] != ["conda-forge", "nodefaults"]:
        faults.append(f"the channels are {environment['channels']}")
    if sorted(listed) != sorted(wanted):
        faults.append(f"conda installs {sorted(listed)}, pyproject.toml asks for {sorted(wanted)}")
    if by_pip != [["-e .[dev]"]] or "dev" not in project["optional-dependencies"]:
        faults.append(f"pip installs {by_pip}, it should install this project with the extra dev")
    return faults


def texts():
    return (ROOT / "environment.yml").read_text(), (ROOT / "pyproject.toml").read_text()


def test_environment_yml_and_pyproject_toml_ask_for_the_same():
    assert conda_faults(*texts()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pytorch-cpu>=2.7,<2.15", "pytorch-cpu>=2.7,<2.16"),
        ("python=3.11", "python=3.12"),
        ("-e .[dev]", "-e ."),
        ("  - nodefaults\n", ""),
        ("  - pip\n", "  - pip\n  - scipy\n"),
    ],
)
def test_a_disagreement_between_the_two_files_is_caught(old, new):
    environment, project = texts()
    assert old in environment
    assert len(conda_faults(environment.replace(old, new), project)) == 1


def bounds(line):
    """The name and, by comparison sign, the versions of a requirement."""
    requirement = Requirement(line)
    return requirement.name, {one.operator: Version(one.version) for one in requirement.specifier}


def test_the_extra_dev_asks_for_no_less_than_transformers_does():
    """Kind: a lower bound under which pip finds nothing that fits."""
    project = tomllib.loads(texts()[1])["project"]
    ours = dict(map(bounds, project["dependencies"])) | dict(map(bounds, project["optional-dependencies"]["dev"]))
    needed = dict(bounds(line) for line in requires("transformers") if "extra ==" not in line)
    for name in ("tokenizers", "safetensors"):
        assert ours[name][">="] >= needed[name][">="], name


def test_make_takes_a_torch_that_the_package_allows_and_only_where_there_is_none():
    """Kind: `make` that replaces the CPU build somebody put there, or takes another torch than the package wants."""
    makefile = (ROOT / "Makefile").read_text()
    _, taken = bounds(re.search(r"^TORCH = (\S+)$", makefile, re.MULTILINE)[1])
    allowed = dict(map(bounds, tomllib.loads(texts()[1])["project"]["dependencies"]))["torch"]
    assert taken[">="] == allowed[">="] and taken["<"] <= allowed["<"]
    assert re.search(r"pip show --quiet torch [^\n]*\\\n\t+\|\| [^\n]*'\$\(TORCH\)'", makefile)


EXTRA = {
    "course": {"course"},
    "course/kit": {"course", "site"},  # without `site` its formulas stand as they are typed
    "course/site": {"course", "site"},
    "fast/compiled": {"fast"},
    "bench": {"dev", "fast"},
}  # what rooms need more
BRINGS = {
    "ipywidgets": {"IPython"},
    "sphinx": {"docutils"},
    "jupyterlab": {"nbconvert", "nbformat"},
    "matplotlib": {"PIL"},
    "numba": {"llvmlite"},
    "websocket-client": {"websocket"},
}  # modules that come along with a package


def brought(*extras):
    """Top-level modules that `pip install minidsv4[extras]` brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    names = {re.match(r"[\w-]+", line).group() for line in lines}
    return names.union(*(BRINGS.get(name, ()) for name in names))


def imported(source):
    """Top-level modules that a text imports anywhere in it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[0] for name in names}


def foreign(source, *extras):
    """What a text imports that neither Python, the package nor these extras bring."""
    return imported(source) - set(sys.stdlib_module_names) - {"minidsv4"} - brought(*extras)


@pytest.mark.slow
def test_each_room_imports_only_what_its_extra_brings():
    found = {}
    for path in sorted((ROOT / "minidsv4").rglob("*.py")):
        name = path.relative_to(ROOT / "minidsv4").as_posix()
        extras = set().union(*(extras for room, extras in EXTRA.items() if name.startswith(room + "/")))
        found[name] = foreign(path.read_text(encoding="utf-8"), *extras)
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_an_import_that_pip_does_not_bring_is_caught():
    assert foreign("def f():\n    from matplotlib import pyplot") == {"matplotlib"}
    assert foreign("from matplotlib import pyplot", "course") == set()


def without(module, *words):
    """What a command says where a module is not installed: exit code, output, errors."""
    script = (
        f"import sys; sys.modules[{module!r}] = None; from minidsv4.__main__ import main; sys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_writing_needs_nothing_of_the_course():
    code, said, errors = without("matplotlib", "generate", "def", "--tokens", "2")
    assert (code, errors) == (0, "") and said.startswith("def")


@pytest.mark.slow
def test_a_command_of_the_course_says_what_to_install():
    code, said, errors = without("matplotlib", "tour", "--minutes", "0.01")
    assert (code, said) == (2, "") and errors.count("\n") == 1
    assert "matplotlib is not installed; `pip install 'minidsv4[course]'` adds it" in errors
