"""More tokens for a trained model: on the tokens that it had nothing changes."""

import pytest
import torch

import minidsv4 as v4
from minidsv4.train.vocabulary import with_vocabulary

CONFIG = v4.Config.tiny().replace(vocab_size=41, num_hash_layers=1, num_nextn_predict_layers=1)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = v4.Model(CONFIG, v4.PLAIN).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    for module in model.modules():
        if hasattr(module, "tid2eid"):
            module.draw(seed=77)  # a table that a new model does not have
    return model


def test_old_tokens_keep_their_logits_and_new_ones_are_average(model):
    wider = with_vocabulary(model, 47)
    ids_BT = torch.randint(41, (2, 19), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = model(ids_BT), wider(ids_BT)
    assert wider.config == CONFIG.replace(vocab_size=47) and new.dtype == torch.float64 and wider.ops is v4.PLAIN
    torch.testing.assert_close(new[..., :41], old, rtol=0, atol=1e-10)  # float64, one product of another width
    torch.testing.assert_close(new[..., 41:], old.mean(dim=-1, keepdim=True).expand(2, 19, 6), rtol=0, atol=1e-10)


def test_new_tokens_differ_and_the_seed_decides_how(model):
    rows = [with_vocabulary(model, 47, seed).embed.weight[41:] for seed in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert len({tuple(row) for row in rows[0].tolist()}) == 6


def test_the_model_that_was_given_stays_as_it_was_and_no_random_number_of_torch_is_used(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with torch.no_grad():
        with_vocabulary(model, 50).embed.weight.zero_()
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_same_number_of_tokens_is_a_copy_and_fewer_are_refused(model):
    assert with_vocabulary(model, 41).config == CONFIG
    with pytest.raises(ValueError, match="vocab_size = 40 is less than the model's 41"):
        with_vocabulary(model, 40)
