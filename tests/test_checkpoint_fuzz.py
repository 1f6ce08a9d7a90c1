"""Fuzzed weight files: each loads, or is refused with a sentence of this package. Kind: any bytes changed anywhere."""

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from small import TINY

import minidsv4 as v4

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a small file, and a folder to spoil them in."""
    folder = v4.save(v4.Model(TINY.replace(n_routed_experts=2)), tmp_path_factory.mktemp("fuzzed"))
    return (folder / WEIGHTS).read_bytes(), folder


@seed(7)
@settings(max_examples=200, deadline=None, database=None)
@given(place=st.floats(0, 1), in_header=st.booleans(), count=st.integers(0, 9), other=st.binary(max_size=9))
def test_any_bytes_changed_load_or_give_a_sentence(saved, place, in_header, count, other):
    """A changed header, length or weight; what stays a finite weight loads, which a checksum alone could tell."""
    whole, folder = saved
    header = 8 + int.from_bytes(whole[:8], "little")
    start = int(place * (header if in_header else len(whole)))
    (folder / WEIGHTS).write_bytes(whole[:start] + other + whole[start + count :])
    try:
        assert isinstance(v4.load(folder), v4.Model)
    except ValueError as error:
        assert str(error).startswith("checkpoint: "), error
