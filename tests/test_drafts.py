"""What notebook 08 shows of drafting is what decoding did."""

import torch

from minidsv4.experiments.drafts import chi_square, drafted_text, quiet_model
from minidsv4.serve.generation import generate


def test_drafts_kept_and_own_tokens_make_the_text_and_rejected_ones_differ_from_it():
    model = quiet_model()
    first, passes = drafted_text(model, [5, 5, 1], depth=3, n_rounds=12)
    text = [first]
    for one in passes:
        assert len(one.kept) + len(one.rejected) == 3
        assert one.rejected[:1] != [one.own]
        text += [*one.kept, one.own]
    assert text == generate(model, [5, 5, 1], len(text), temperature=0)
    assert any(one.kept for one in passes) and any(one.rejected for one in passes)


def test_chi_square_counts_the_likeliest_tokens_and_the_rest():
    share_V = torch.tensor([0.1, 0.5, 0.2, 0.2], dtype=torch.float64)
    counts_V = torch.tensor([10.0, 60.0, 10.0, 20.0], dtype=torch.float64)
    assert abs(chi_square(counts_V, share_V, 1) - (10**2 / 50 + 10**2 / 50)) < 1e-9
    assert chi_square(100 * share_V, share_V, 3) < 1e-12
