"""Fuzzed `config.json` files: each gives a Config that is written and read back, or a sentence of this package.

Kind: values of any JSON type and size in any field, in both spellings. Seeded, so that a failure comes back.
"""

import json
import warnings

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

import minidsv4 as v4
from minidsv4.config_json import for_transformers, released

TINY = v4.Config.tiny()
SPELLINGS = {"released": TINY.to_dict(), "transformers": for_transformers(TINY.to_dict(), "float32")}
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**63, 10**30, 10**400, 1e-320, 1e308])
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=6)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))


def changed(fields: dict, draw) -> dict:
    """A copy in which one to three fields, of the table or of one within it, have another value or are gone."""
    fields = json.loads(json.dumps(fields))
    for _ in range(draw(st.integers(1, 3))):
        table = fields
        name = draw(st.sampled_from(sorted(table)))
        while isinstance(table[name], dict) and table[name] and draw(st.booleans()):
            table = table[name]
            name = draw(st.sampled_from(sorted(table)))
        table[name] = draw(VALUES)
    return fields


@pytest.mark.slow
@pytest.mark.parametrize("spelling", SPELLINGS)
@seed(5)
@settings(max_examples=100, deadline=None, database=None)
@given(data=st.data())
def test_any_values_in_any_field_give_a_config_or_a_sentence(spelling, data):
    fields = changed(SPELLINGS[spelling], data.draw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of draft stages that are left out
            config = v4.Config.from_dict(released(fields))
    except ValueError as error:
        assert str(error).startswith("config: "), error
    else:
        assert v4.Config.from_dict(released(json.loads(json.dumps(config.to_dict())))) == config


@seed(6)
@settings(max_examples=200, deadline=None, database=None)
@given(place=st.floats(0, 1), count=st.integers(0, 40), other=st.binary(max_size=8))
def test_any_bytes_in_the_file_give_a_config_or_a_sentence(tmp_path_factory, place, count, other):
    whole = json.dumps(TINY.to_dict()).encode()
    start = int(place * len(whole))
    file = tmp_path_factory.getbasetemp() / "fuzzed.json"
    file.write_bytes(whole[:start] + other + whole[start + count :])
    try:
        assert isinstance(v4.Config.from_json(file), v4.Config)
    except ValueError as error:
        assert str(error).startswith("config: "), error
