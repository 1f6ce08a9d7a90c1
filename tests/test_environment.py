"""pip and conda install the same things: environment.yml says what pyproject.toml says."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

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
        ("pytorch-cpu>=2.7,<2.14", "pytorch-cpu>=2.7,<2.15"),
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
