"""Checkups of losses, gradients and rewards: a model may answer well and learn the wrong thing.

B batch, T tokens, E experts, V vocabulary.
"""

import functools
import itertools

import torch
from torch import Tensor

from minidsv4 import paper
from minidsv4.course.checkups.subject import CSA, same, subject
from minidsv4.course.record import record
from minidsv4.posttrain import distill, grpo
from minidsv4.posttrain.tasks import Verdict


def indexers_learn_what_their_layers_read():
    """The indexer's loss is the divergence of its scores from the attention on what was read, and it has a gradient."""
    model, ids_BT = subject()
    loss = model.loss(ids_BT).indexer
    with record(model) as rec:
        model(ids_BT)
    (layer,) = (rec[i] for i, kind in enumerate(rec.kinds) if kind is CSA)
    share = layer.weights()[1]
    score = layer.index_scores()
    nats = []
    for b, t in itertools.product(range(2), layer.visible_T.nonzero()[:, 0].tolist()):
        read = share[b, t].sum(0) > 0
        if not read.any():
            continue
        nats.append(paper.index_loss(score[b, t, read].numpy(), share[b, t][:, read].numpy()))
    same(loss.detach(), torch.tensor(sum(nats) / len(nats)))
    assert loss.requires_grad


def the_trunk_learns_from_the_text_alone():
    """The indexer's loss moves the indexer only, and the other losses move everything else."""
    model, ids_BT = subject()
    losses = model.loss(ids_BT)
    of_indexer = [*model.layers[2].attn.indexer.parameters()]
    trunk = [parameter for name, parameter in model.named_parameters() if ".indexer." not in name]
    ask = functools.partial(torch.autograd.grad, allow_unused=True, retain_graph=True)
    if losses.indexer.requires_grad:
        assert not any(grad is not None for grad in ask(losses.indexer, trunk))
    assert not any(grad is not None for grad in ask(losses.main + losses.mtp + losses.balance, of_indexer))


def gradients_are_finite_where_softplus_underflows():
    """The router's scores have finite gradients where an expert's logit lies below -10,000."""
    model, _ = subject()
    router = model.layers[2].ffn.gate
    x_BTD = model.embed.weight[:10].detach().view(2, 5, -1)
    weight_ED = router.weight.detach() - 1e6 * x_BTD[0, :1] * (torch.arange(7)[:, None] == 3)
    weight_ED.requires_grad_()
    scores = router.ops.affinities(x_BTD[:1, :1], weight_ED)
    assert scores.isfinite().all()
    scores.sum().backward()
    assert weight_ED.grad.isfinite().all()


def a_reply_is_compared_with_its_own_group():
    """The one good reply to a hard problem is praised more than one of many to an easy one."""
    easy = [1.0, 1.0, 1.0, 0.0]
    hard = [0.0, 0.0, 0.0, 1.0]
    advantage_B = grpo.advantages(torch.tensor([*easy, *hard]), 4)
    assert advantage_B[7] > advantage_B[0] > 0 and abs(advantage_B[:4].sum()) < 1e-5  # float32


def a_wrong_answer_is_worth_nothing_however_short():
    """Thinking is charged to right answers only."""
    rewards = grpo.Rewards(price={"high": 0.1})
    assert rewards.of("high", Verdict(False, 0)) == rewards.of("high", Verdict(False, 9)) == 0.0
    assert rewards.of("high", Verdict(True, 4)) == 0.6


def distributions() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [1, V] of a student, and the log-probabilities [1, V] of the student and of a teacher."""
    numbers = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits_TV = numbers[0].requires_grad_()
    return logits_TV, logits_TV.log_softmax(-1), numbers[1].log_softmax(-1)


def the_divergence_weighs_by_the_student():
    """The full divergence is KL(student || teacher)."""
    _, student_TV, teacher_TV = distributions()
    by_hand = (student_TV.exp() * (student_TV - teacher_TV)).sum(-1)
    same(distill.full_kl(student_TV, teacher_TV), by_hand)


def the_sampled_gradient_is_the_full_one_in_the_mean():
    """The gradient of the divergence at one sampled token is, in the mean over samples, that of the full one."""
    logits_TV, student_TV, teacher_TV = distributions()
    each = distill.sampled_kl(student_TV.expand(5, -1), teacher_TV.expand(5, -1), torch.arange(5))
    by_hand = (student_TV.exp() * (student_TV - teacher_TV)).sum()
    mean = (student_TV.detach().exp() * each).sum()
    expected = torch.autograd.grad(by_hand, logits_TV, retain_graph=True)
    same(*torch.autograd.grad(mean, logits_TV), *expected)
