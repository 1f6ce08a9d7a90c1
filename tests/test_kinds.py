"""Which experts a kind of token visits is counted as the router decided, and every different token counts once."""

import pytest
import torch

from minidsv4.config import Config
from minidsv4.experiments import kinds
from minidsv4.model.layer import watch
from minidsv4.model.model import Model
from minidsv4.model.moe import Router
from minidsv4.train.tokenizer import Tokenizer

TEXTS = ["for x in range(12):\n    print(x)\n", "total = 7\nprint(total)\n"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [("\n    ", "line break"), (" for", "keyword"), (" total", "name"), ("17", "number"), ("):", "sign")],
)
def test_a_token_has_the_kind_that_a_reader_of_python_would_give_it(text, kind):
    assert kinds.kind_of(text) == kind


@pytest.fixture(scope="module")
def counted():
    tokenizer = Tokenizer.train(TEXTS, vocab_size=270)
    torch.manual_seed(0)
    model = Model(Config.tiny().replace(vocab_size=270))
    return model, tokenizer, kinds.visits(model, tokenizer, TEXTS)


def test_visits_are_those_that_the_routers_made_and_bos_makes_none(counted):
    model, tokenizer, visits_LVE = counted
    ids = [tokenizer.encode(text) for text in TEXTS]
    n_active = model.config.num_experts_per_tok
    occurrences_V = torch.tensor(sum(ids, [])).bincount(minlength=270)
    assert torch.equal(visits_LVE.sum(-1), (n_active * occurrences_V).double().expand(len(visits_LVE), -1))
    with watch(model, Router) as calls:
        model(torch.tensor([[0, *ids[0]]]))
        model(torch.tensor([[0, *ids[1]]]))
    second = [routed.picked_BTA[0, 1:] for _, _, routed in calls][1 :: len(model.layers)]
    expert_E = torch.cat(second).flatten().bincount(minlength=visits_LVE.shape[-1])
    assert torch.equal(visits_LVE[1].sum(0), expert_E.double())


def test_a_random_table_gives_an_id_the_same_experts_at_each_of_its_visits(counted):
    model, _, visits_LVE = counted
    n_active = model.config.num_experts_per_tok
    drawn_VE = kinds.visits_of_a_table(visits_LVE[1], n_active, seed=3)
    assert torch.equal(drawn_VE.sum(-1), visits_LVE[1].sum(-1))
    assert ((drawn_VE > 0).sum(-1)[drawn_VE.sum(-1) > 0] == n_active).all()


def test_every_different_token_counts_once_in_the_shares_of_its_kind():
    tokenizer = Tokenizer.train(TEXTS, vocab_size=270)
    one, other = tokenizer.encode("1") + tokenizer.encode("7")
    visits_VE = torch.zeros(270, 3, dtype=torch.float64)
    visits_VE[one] = torch.tensor([90.0, 90.0, 0.0])  # 90 times, always at experts 0 and 1
    visits_VE[other] = torch.tensor([0.0, 1.0, 1.0])  # once, at experts 1 and 2
    for text in ("\n", " for", " x", "):"):
        visits_VE[tokenizer.encode(text)[0]] = 1.0
    number_E = kinds.shares_by_kind(visits_VE, tokenizer, n_active=2)[kinds.KINDS.index("number")]
    assert torch.equal(number_E, torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64))
