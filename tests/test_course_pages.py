"""Pages that move without a kernel: their files, and the commands that write them."""

import json
from pathlib import Path

import pytest

from minidsv4.course import microscope, stepper
from minidsv4.course.pages import script, write_from_command_line, write_page


def test_a_page_is_its_own_files_the_shared_ones_and_those_just_made(tmp_path):
    index = write_page("stepper", tmp_path / "new" / "page", {"parts/one.js": script("ONE", [1])})
    assert index == tmp_path / "new" / "page" / "index.html"
    assert index.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (index.parent / "theme.css").is_file()
    assert (index.parent / "parts" / "one.js").read_text(encoding="utf-8") == "window.ONE = [1];\n"


def test_a_script_of_data_keeps_letters_and_refuses_what_json_lacks():
    assert json.loads(script("X", {"a": "é ↵"}).removeprefix("window.X = ").removesuffix(";\n")) == {"a": "é ↵"}
    with pytest.raises(ValueError):
        script("X", [float("inf")])


def test_a_command_writes_its_page_and_says_where(tmp_path, capsys):
    assert write_from_command_line("stepper", stepper.write_site, [str(tmp_path / "page")]) == 0
    assert capsys.readouterr().out == f"Open {tmp_path / 'page' / 'index.html'} in a browser.\n"


def test_a_file_in_place_of_the_folder_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit) as refused:
        write_from_command_line("stepper", stepper.write_site, [str(tmp_path / "file")])
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert said == f"stepper: folder = {tmp_path / 'file'} cannot be written (File exists); name another folder\n"


@pytest.mark.parametrize("module", [microscope, stepper])
def test_no_page_loads_anything_from_another_host(module):
    files = sorted((Path(module.__file__).parent / "page").iterdir())
    assert len(files) > 4
    for path in files:
        assert "://" not in path.read_text(encoding="utf-8"), path.name
