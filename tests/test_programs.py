"""Generated programs: they run, print what they say, differ from each other and are the same everywhere."""

import ast
import hashlib
import subprocess
import sys

import pytest

from minidsv4.train.programs import document, programs

# --- from templates ---


def test_every_generated_program_prints_what_it_says():
    made = programs(seed=3, n=120)
    whole = "\n".join(f"{program.source}\nprint('=====')" for program in made)
    shown = subprocess.run([sys.executable, "-I", "-c", whole], capture_output=True, text=True, check=True).stdout
    assert shown.split("=====\n") == [*(program.output for program in made), ""]


def test_the_generated_programs_are_the_same_everywhere():
    digest = hashlib.sha256(repr(programs(seed=0, n=300)).encode()).hexdigest()
    assert digest == "85b7ce0e708c7ee9334bd451fb84bd92dd08e4b6a50e948d8256b751d6adc309"


def test_fewer_programs_of_a_seed_are_the_first_of_more_and_another_seed_gives_others():
    assert programs(5, 7) == programs(5, 20)[:7]
    assert programs(6, 20) != programs(5, 20)
    assert programs(5, 0) == []


def test_generated_programs_are_varied_and_small():
    made = programs(seed=0, n=300)
    assert len(set(made)) > 200
    assert all(0 < len(program.source) < 400 and 1 <= program.output.count("\n") <= 8 for program in made)


def test_a_negative_number_of_programs_is_refused():
    with pytest.raises(ValueError, match="n = -1"):
        programs(0, -1)


# --- every second one composed ---


def test_composed_programs_print_what_they_say_and_their_documents_are_python():
    made = programs(seed=3, n=120, composed=True)
    whole = "\n".join(f"{document(program)}\nprint('=====')" for program in made)
    shown = subprocess.run([sys.executable, "-I", "-c", whole], capture_output=True, text=True, check=True).stdout
    assert shown.split("=====\n") == [*(program.output for program in made), ""]


def test_a_document_ends_with_what_the_program_prints_line_by_line_as_comments():
    (program,) = programs(0, 1)
    text = document(program)
    assert text.startswith(program.source) and ast.dump(ast.parse(text)) == ast.dump(ast.parse(program.source))
    assert text[len(program.source) :].replace("#> ", "") == program.output


def test_composed_programs_are_the_same_everywhere_and_fewer_are_the_first_of_more():
    digest = hashlib.sha256(repr(programs(seed=0, n=300, composed=True)).encode()).hexdigest()
    assert digest == "da8ee6d337c434df8056af6bb506e726c284ecafdb2ad12f8e33387ba5874f8e"
    assert programs(5, 7, composed=True) == programs(5, 20, composed=True)[:7] and programs(5, 0, composed=True) == []
    assert programs(6, 20, composed=True) != programs(5, 20, composed=True)


def test_composed_programs_vary_and_are_small():
    made = programs(seed=0, n=1000, composed=True)
    assert len(set(made)) > 900 and len({program.source for program in made[1::2]}) == 500
    assert all(len(document(program)) < 600 for program in made)
    kinds = {type(node).__name__ for program in made for node in ast.walk(ast.parse(program.source))}
    assert {"FunctionDef", "ClassDef", "For", "While", "If", "ListComp", "Dict", "JoinedStr", "Subscript"} <= kinds
