"""The glossary: its sizes are those of the released configs, its letters are single and its fields exist."""

import dataclasses

import pytest

import minidsv4 as v4
from minidsv4.dims import GLOSSARY, STREAM_PAIR

WITH_FIELD = {letter: axis for letter, axis in GLOSSARY.items() if axis.field}


@pytest.mark.parametrize("letter", WITH_FIELD)
def test_every_field_of_the_glossary_is_a_field_of_the_config(letter):
    assert GLOSSARY[letter].field in {field.name for field in dataclasses.fields(v4.Config)}


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_the_sizes_in_the_glossary_are_those_of_the_released_configs(name):
    config = getattr(v4.Config, name)()
    sizes = {letter: getattr(axis, name) for letter, axis in WITH_FIELD.items() if letter != "M"}
    assert sizes == {letter: getattr(config, GLOSSARY[letter].field) for letter in sizes}


def test_only_the_ratios_of_the_layers_have_no_single_size():
    assert [letter for letter, axis in WITH_FIELD.items() if axis.flash is None or axis.pro is None] == ["M"]
    assert all(axis.flash is None and axis.pro is None for axis in GLOSSARY.values() if not axis.field)


def test_a_letter_is_one_capital_and_the_pair_of_streams_is_small():
    assert all(len(letter) == 1 and letter.isupper() for letter in GLOSSARY)
    assert set(STREAM_PAIR) == {"i", "j"}


def test_every_axis_says_what_it_means_and_no_two_axes_mean_the_same():
    meanings = [axis.meaning for axis in GLOSSARY.values()]
    assert all(meanings) and len(set(meanings)) == len(meanings)
    fields = [axis.field for axis in WITH_FIELD.values()]
    assert len(set(fields)) == len(fields)
