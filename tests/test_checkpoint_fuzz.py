"""Fuzzed weight files: each loads as it was saved, or is refused with a sentence of this package.

Kind: any bytes changed anywhere, and single bits of the weights, which only a checksum can see.
"""

import random
import re

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small import TINY

import minidsv4 as v4

WEIGHTS = "model.safetensors"
SENTENCE = re.compile(r"checkpoint: [\w.]+ in model\.safetensors is not what was saved, its SHA-256 differs;")


@pytest.fixture(scope="module", params=[None, "fp8"])
def saved(request, tmp_path_factory):
    """The bytes of a small file, a folder to spoil them in, and the weights that it gives."""
    model = v4.Model(TINY.replace(n_routed_experts=2))
    folder = v4.save(model, tmp_path_factory.mktemp("fuzzed"), precision=request.param)
    return (folder / WEIGHTS).read_bytes(), folder, v4.load(folder).state_dict()


def header_bytes(whole):
    """Length of a file's header, with the 8 bytes that tell it."""
    return 8 + int.from_bytes(whole[:8], "little")


def outcome(saved, changed):
    """The refusal of a changed file; None where it loads, and then every weight is as it was saved."""
    _, folder, state = saved
    (folder / WEIGHTS).write_bytes(changed)
    try:
        found = v4.load(folder).state_dict()
    except ValueError as error:
        return str(error)
    assert all(torch.equal(found[name], state[name]) for name in found)
    return None


@pytest.mark.slow
@seed(7)
@settings(max_examples=100, deadline=None, database=None)
@given(place=st.floats(0, 1), in_header=st.booleans(), count=st.integers(0, 9), other=st.binary(max_size=9))
def test_any_bytes_changed_load_as_they_were_or_give_a_sentence(saved, place, in_header, count, other):
    whole = saved[0]
    start = int(place * (header_bytes(whole) if in_header else len(whole)))
    refusal = outcome(saved, whole[:start] + other + whole[start + count :])
    assert refusal is None or refusal.startswith("checkpoint: "), refusal


@pytest.mark.slow
def test_every_single_flipped_bit_of_a_weight_is_refused_with_the_name_of_its_tensor(saved):
    """Kind: damage that leaves a finite weight, once another model in silence; 100 bits of each format."""
    whole, generator = saved[0], random.Random(3)
    for _ in range(100):
        place = generator.randrange(header_bytes(whole), len(whole))
        changed = bytearray(whole)
        changed[place] ^= 1 << generator.randrange(8)
        refusal = outcome(saved, changed)
        assert refusal and SENTENCE.match(refusal), (place, refusal)


def test_a_file_without_checksums_loads_and_the_log_says_so(saved, caplog):
    """Kind: a folder that another program wrote, which holds none to compare with."""
    whole, folder, state = saved
    assert outcome(saved, whole) is None
    with caplog.at_level("INFO"):
        v4.load(folder)
        assert caplog.messages == []
        (folder / "SHA256SUMS").unlink()
        save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
        found = v4.load(folder).state_dict()
    assert caplog.messages == ["checkpoint: model.safetensors holds no checksums; its bytes are taken as they are"]
    assert all(torch.equal(found[name], state[name]) for name in found)
