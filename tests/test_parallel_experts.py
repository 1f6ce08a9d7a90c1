"""Experts over real ranks against `Experts` in one process: outputs and all gradients, bit for bit where promised."""

import gc
import itertools
import os
import signal

import pytest
import torch
from small import EXACT, TINY, assert_same_gradients, disturb, normal, off, small_model, token_ids
from torch import nn

from minidsv4 import load, save
from minidsv4.checkpoint import loading
from minidsv4.model.moe import Experts
from minidsv4.parallel import (
    Layout,
    LostContact,
    RankError,
    expert_parallel_moe,
    load_spread,
    plan,
    run_ranks,
    shard,
    spread_experts,
    sum_gradients,
)
from minidsv4.parallel import gradients as messages
from minidsv4.parallel.transport import Transport
from minidsv4.parallel.wire import Wire

E, T, D = 32, 23, TINY.hidden_size
SIZES = {1: [T], 2: [19, 4], 4: [5, 0, 17, 1], 8: [3, 0, 7, 0, 1, 4, 0, 8]}  # tokens of each rank
NAMES = ("output", "x", "routing weights", "w13", "w2")
SEATS = tuple(normal(E, seed=6).argsort().tolist())


def picks(kind, n_active):
    """Experts [T, A]: all of them, mostly the last ones, or three ranks of four left out."""
    score = normal(T, E, seed=5) + {"random": 0, "skewed": 0.5, "empty": -100}[kind] * torch.arange(E)
    return score.argsort(-1, descending=True)[:, :n_active]


def all_experts(n_active=3, dtype=torch.float64):
    return disturb(Experts(TINY.replace(n_routed_experts=E, num_experts_per_tok=n_active)).to(dtype))


def inputs(n_active, dtype, part=slice(None)):
    """x and weights as leaves, and the gradient that comes from above."""
    x, weight, above = normal(T, D, seed=7), normal(T, n_active, seed=8).abs(), normal(T, D, seed=9)
    return *(tensor.to(dtype)[part].requires_grad_() for tensor in (x, weight)), above.to(dtype)[part]


def one_process(kind, n_active, dtype=torch.float64):
    experts, (x, weight, above) = all_experts(n_active, dtype), inputs(n_active, dtype)
    out = experts(x, picks(kind, n_active), weight)
    (out * above).sum().backward()
    return out.detach(), x.grad, weight.grad, experts.w13.grad, experts.w2.grad


def on_ranks(group, kind, strategy, waves, n_active, dtype=torch.float64, **settings):
    """The same on this rank, for its part of the tokens; as many tensors."""
    rank, sizes = group.rank(), SIZES[group.size()]
    part = slice(None) if strategy == "allreduce" else slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    experts = shard(all_experts(n_active, dtype), group, settings.get("seats", ()))
    x, weight, above = inputs(n_active, dtype, part)
    out = expert_parallel_moe(x, picks(kind, n_active)[part], weight, experts, group, strategy, waves, **settings)
    (out * above).sum().backward()
    return out.detach(), x.grad, weight.grad, experts.w13.grad, experts.w2.grad


def together(parts, strategy, seats=()):
    """Tensors of all ranks as one process would have them."""
    n_ranks, whole = len(parts), [torch.cat(tensors) for tensors in zip(*parts)]
    if strategy == "allreduce":
        whole[:3] = parts[0][:3]
    seat_E = Layout(E, n_ranks, seats=seats).seat_E
    return *whole[:3], whole[3][seat_E], whole[4][seat_E]


def cases(n_ranks):
    """(kind, strategy, waves, picks, dtype, settings) of one start of ranks."""
    kinds, numbers = ("random", "skewed", "empty"), (1, 2, 4)
    routes = zip(kinds, numbers) if n_ranks == 8 else itertools.product(kinds, numbers)  # 8 are slow to take turns
    found = [(kind, "waves", waves, 3, torch.float64, {}) for kind, waves in routes]
    for strategy in ("allreduce", "allgather", "alltoall"):
        found += [(kind, strategy, 1, 3, torch.float64, {}) for kind in ("random", "empty")]
        found.append(("skewed", strategy, 1, 2, torch.float32, {}))
    found.append(("random", "waves", 2, 6, torch.float32, {}))
    found += [
        ("skewed", strategy, 2 if strategy == "waves" else 1, 3, torch.float64, {"seats": SEATS})
        for strategy in ("waves", "allgather")
    ]
    return found


@pytest.fixture(scope="module", params=[1, 2, 4, 8])
def compared(request):
    """(case, tensors of the ranks, tensors of one process) for so many ranks."""
    found = cases(request.param)

    def work(group):
        return [on_ranks(group, *case[:5], **case[5]) for case in found]

    by_rank, compared = run_ranks(work, request.param, timeout=60), []
    for case, *parts in zip(found, *by_rank):
        kind, strategy, _, n_active, dtype, settings = case
        ours = together(parts, strategy, settings.get("seats", ()))
        compared.append((case, ours, one_process(kind, n_active, dtype)))
    return compared


@pytest.mark.slow
def test_alltoall_and_waves_give_one_process_bit_for_bit_gradients_included(compared):
    for (kind, strategy, waves, *rest), ours, expected in compared:
        if strategy in ("alltoall", "waves"):
            for name, a, b in zip(NAMES, ours, expected):
                assert torch.equal(a, b), (kind, strategy, waves, rest, name)


@pytest.mark.slow
def test_allreduce_and_allgather_do_so_up_to_the_order_of_sums_and_exactly_where_a_token_has_two_experts(compared):
    for (kind, strategy, _, n_active, *_), ours, expected in compared:
        if strategy in ("allreduce", "allgather"):
            for name, a, b in zip(NAMES, ours, expected):
                alike = torch.equal(a, b) if n_active <= 2 or name[0] in "rw" else (a - b).abs().max() < EXACT
                assert alike, (kind, strategy, n_active, name)


def attempt(call):
    """What a call raises, as text."""
    try:
        call()
    except ValueError as error:
        return str(error)


@pytest.fixture(scope="module")
def odd():
    """What four ranks find out in one start about everything out of the ordinary, by name and rank."""

    def work(group):
        rank, part = group.rank(), slice(6 * group.rank(), min(T, 6 * group.rank() + 6))
        experts = shard(all_experts(), group)
        x, weight, above = inputs(3, torch.float64, part)
        picked, found = picks("skewed", 3)[part], {}

        def call(**settings):
            return expert_parallel_moe(x, picked, weight, experts, group, **settings)

        found["waves"] = attempt(lambda: call(strategy="waves", waves=3 if rank == 2 else 2))
        found["strategy"] = attempt(lambda: call(strategy="alltoall" if rank else "allreduce"))
        found["seats"] = attempt(lambda: call(seats=SEATS if rank == 1 else ()))
        found["tokens"] = attempt(lambda: call(strategy="allreduce"))
        own_x = x.detach() if rank == 1 else x
        found["gradients"] = attempt(lambda: expert_parallel_moe(own_x, picked, weight, experts, group))
        found["too many"] = attempt(lambda: call(strategy="waves", waves=9))
        found["not waves"] = attempt(lambda: call(waves=2))
        found["no strategy"] = attempt(lambda: call(strategy="magic"))
        found["no format"] = attempt(lambda: call(combine="fp8"))
        found["no use"] = attempt(
            lambda: expert_parallel_moe(x[:0], picked[:0], weight[:0], experts, group, "allreduce", combine="bf16")
        )
        with torch.no_grad():
            found["dropped"] = expert_parallel_moe(x, picked.where(picked % 2 == 0, -1), weight, experts, group)
            found["nobody"] = expert_parallel_moe(x[:0], picked[:0], weight[:0], experts, group, "waves", 2)
            one = picked[:, :1], weight[:, :1], experts, group
            for dispatch, combine in FORMATS:
                for strategy in ("waves", "allgather"):
                    out = expert_parallel_moe(x, *one, strategy, dispatch=dispatch, combine=combine)
                    found[dispatch, combine, strategy] = out
            transport = Transport(group)
            found["came"] = transport.swap(plan(picked, Layout(E, 4)).counts)
            call(strategy="waves", waves=4, transport=transport)
            found["sent"] = transport.sent_bytes
        expert_parallel_moe(x.detach(), picked, weight.detach(), experts, group).mul(above).sum().backward()
        found["frozen"] = experts.w13.grad
        return found

    return run_ranks(work, 4, timeout=60)


FORMATS = (("bf16", "exact"), ("fp8", "exact"), ("exact", "bf16"), ("fp8", "bf16"))


def test_ranks_that_mean_different_things_are_told_so_on_every_rank_before_anything_is_sent(odd):
    same, differs = "; it must be the same on all", "differs between ranks: "
    for found in odd:
        assert found["waves"] == f"waves {differs}3 on rank 2, 2 on ranks 0, 1, 3" + same
        assert found["strategy"] == f"strategy {differs}'allreduce' on rank 0, 'alltoall' on ranks 1, 2, 3" + same
        assert found["seats"].startswith(f"seats {differs}") and "on rank 1" in found["seats"]
        theirs = "'weights w13 w2' on rank 1, 'x weights w13 w2' on ranks 0, 2, 3"
        assert found["gradients"] == f"tensors with a gradient {differs}{theirs}" + same
        assert found["tokens"] == f"tokens {differs}5 on rank 3, 6 on ranks 0, 1, 2" + same


def test_settings_that_make_no_sense_give_a_sentence_on_every_rank(odd):
    for found in odd:
        assert found["too many"] == "waves = 9: a rank has 8 experts, so 1 .. 8 waves"
        assert found["not waves"] == "waves = 2: alltoall has one; strategy = 'waves' has more"
        assert found["no strategy"].startswith("strategy = 'magic' is not known; it is one of allreduce, allgather")
        assert found["no format"] == "combine = 'fp8' is not known; it is one of exact, bf16"
        assert "allreduce sums exactly" in found["no use"]


def test_each_expert_gets_as_many_rows_as_picks_name_it(odd):
    came = torch.cat([found["came"].sum(0) for found in odd])
    assert torch.equal(came, picks("skewed", 3).flatten().bincount(minlength=E))


def test_a_rank_sends_its_rows_and_the_results_of_others_rows_and_no_more(odd):
    rank_of = picks("skewed", 3) // (E // 4)
    for rank, found in enumerate(odd):
        mine = torch.arange(T) // 6 == rank
        rows, results = int((rank_of[mine] != rank).sum()), int((rank_of[~mine] == rank).sum())
        assert found["sent"] == 8 * (rows * (D + 1) + results * D)  # float64; the weight travels with its row


def test_a_pick_of_minus_one_gives_nothing(odd):
    picked, (x, weight, _) = picks("skewed", 3), inputs(3, torch.float64)
    expected = all_experts()(x, picked.clamp(min=0), weight.where(picked % 2 == 0, 0))
    assert (torch.cat([found["dropped"] for found in odd]) - expected).abs().max() < EXACT


def test_no_tokens_on_any_rank_are_no_problem(odd):
    assert [found["nobody"].shape for found in odd] == [(0, D)] * 4


@pytest.mark.parametrize(("dispatch", "combine"), FORMATS)
def test_formats_round_tokens_on_the_way_there_and_results_on_the_way_back_and_nothing_else(odd, dispatch, combine):
    x, weight, _ = (tensor.detach() for tensor in inputs(3, torch.float64))
    sent = Wire(dispatch).unpack(Wire(dispatch).pack(x), like=x)
    expected = all_experts()(sent, picks("skewed", 3)[:, :1], weight[:, :1])
    expected = expected.bfloat16().double() if combine == "bf16" else expected
    for strategy in ("waves", "allgather"):
        ours = torch.cat([found[dispatch, combine, strategy] for found in odd])
        assert torch.equal(ours, expected.detach())


def test_experts_learn_though_nothing_else_does_and_some_ranks_get_no_rows(odd):
    experts, (x, weight, above) = all_experts(), (tensor.detach() for tensor in inputs(3, torch.float64))
    (experts(x, picks("skewed", 3), weight) * above).sum().backward()
    assert torch.equal(torch.cat([found["frozen"] for found in odd]), experts.w13.grad)


# --- a whole model ---

CONFIG = TINY.replace(n_routed_experts=8)


def above(n_batch, n_tokens):
    return normal(n_batch, n_tokens, CONFIG.vocab_size, seed=3)


def of_logits(model, ids_BT, part):
    """A sum over logits, without the MTP block and the indexers, which therefore get no gradient."""
    return (model(ids_BT[part]) * above(*ids_BT.shape)[part]).sum()


def of_training(model, ids_BT, part):
    """The training loss, which is a mean over rows, as a sum over them: all parameters learn from it."""
    return model.loss(ids_BT[part]).total * len(ids_BT[part])


@pytest.mark.slow
@pytest.mark.parametrize("loss", [of_logits, of_training])
@pytest.mark.parametrize("strategy", ["waves", "allgather", "allreduce"])
def test_a_spread_model_gives_every_parameter_the_gradient_of_the_whole_one(strategy, loss):
    ids_BT, whole = token_ids(2, 17), small_model(CONFIG)
    loss(whole, ids_BT, slice(None)).backward()
    expected = gradients(whole)
    assert [name for name in expected if expected[name] is None and "mtp" not in name and "index" not in name] == []
    assert (None in expected.values()) == (loss is of_logits)

    def work(group):
        rank = group.rank()
        part = slice(None) if strategy == "allreduce" else slice(rank, rank + 1)
        model = spread_experts(small_model(CONFIG), group, strategy=strategy, waves=2 if strategy == "waves" else 1)
        loss(model, ids_BT, part).backward()
        if strategy != "allreduce":
            sum_gradients(model, group)
        return gradients(model)

    first, second = run_ranks(work, 2, timeout=60)
    stacks = [name for name in expected if ".experts." in name and expected[name] is not None]
    joined = {name: torch.cat([first[name], second[name]]) for name in stacks}
    for found in (first, second):
        assert_same_gradients(found | joined, expected)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["waves", "allgather", "allreduce"])
def test_a_spread_model_gives_the_logits_of_the_whole_one(strategy):
    ids_BT = token_ids(2, 17)

    def work(group):
        part = slice(None) if strategy == "allreduce" else slice(group.rank(), group.rank() + 1)
        model = spread_experts(small_model(CONFIG), group, strategy=strategy, waves=2 if strategy == "waves" else 1)
        return model(ids_BT[part]).detach()

    first, second = run_ranks(work, 2, timeout=60)
    logits = first if strategy == "allreduce" else torch.cat([first, second])
    assert off(logits, small_model(CONFIG)(ids_BT).detach()) < EXACT


def test_a_gradient_that_one_rank_alone_has_is_summed_and_one_that_no_rank_has_stays_none():
    def work(group):
        model = torch.nn.Linear(3, 2)
        if group.rank() == 1:
            model.weight.grad = torch.ones(2, 3)
        sum_gradients(model, group)
        return gradients(model)

    for found in run_ranks(work, 2):
        assert torch.equal(found["weight"], torch.ones(2, 3)) and found["bias"] is None


def test_each_rank_reads_its_share_of_a_checkpoint_and_no_other_expert(tmp_path):
    whole, ids_BT, seats = load(save(small_model(CONFIG), tmp_path)), token_ids(2, 17), (4, 2, 0, 6, 1, 7, 3, 5)
    expected = whole(ids_BT).detach()

    def work(group):
        rank = group.rank()
        read, stack = [], loading.from_released
        loading.from_released = lambda tensors: read.extend(tensors) or stack(tensors)
        model = load_spread(tmp_path, group, seats=seats)
        return model(ids_BT[rank : rank + 1]).detach(), read, model.layers[1].ffn.experts.w13.detach()

    (first, read, w13), (second, _, other) = run_ranks(work, 2, timeout=60)
    assert (torch.cat([first, second]) - expected).abs().max() < EXACT * expected.abs().max()
    numbers = {name.split(".experts.")[1].split(".")[0] for name in read if ".experts." in name}
    assert numbers == {"0", "1", "2", "3"}
    assert torch.equal(torch.cat([w13, other])[list(seats)], whole.layers[1].ffn.experts.w13)


def test_ranks_that_wait_for_a_killed_one_say_so_with_their_number(tmp_path):
    def work(group):
        rank, experts = group.rank(), shard(all_experts(), group)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        x, weight, _ = inputs(3, torch.float64)
        try:
            expert_parallel_moe(x, picks("random", 3), weight, experts, group, "waves", 2)
        except LostContact as error:
            (tmp_path / str(rank)).write_text(str(error))
            raise

    with pytest.raises(RankError, match="rank 1 was killed"):
        run_ranks(work, 4)
    for rank in (0, 2, 3):
        assert (tmp_path / str(rank)).read_text().startswith(f"rank {rank}: while comparing strategy, waves")


@pytest.mark.parametrize("strategy", ["waves", "allgather", "allreduce"])
def test_second_derivatives_are_refused_since_terms_would_be_missing(strategy):
    def work(group):
        x, weight, above = inputs(3, torch.float64)
        out = expert_parallel_moe(x, picks("random", 3), weight, shard(all_experts(), group), group, strategy)
        torch.autograd.grad((out * above).sum(), x, create_graph=True)

    with pytest.raises(RankError, match="ranks 0, 1 raised ValueError: (parallel|ops): [^\n]* first derivatives only"):
        run_ranks(work, 2)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["waves", "allgather"])
def test_a_call_leaves_no_tensor_behind_that_only_the_garbage_collector_would_find(strategy):
    def work(group):
        experts, alive = shard(all_experts(), group), []
        gc.collect()
        gc.disable()
        gc.freeze()  # get_objects lists what is made from here on, whatever goes of what earlier tests left
        for _ in range(3):
            x, weight, _ = inputs(3, torch.float64)
            out = expert_parallel_moe(x, picks("random", 3), weight, experts, group, strategy)
            del x, weight, out
            alive.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
        return alive

    ((first, *others),) = run_ranks(work, 1)
    assert others == [first, first]


def test_gradients_travel_together_by_type_a_large_one_alone_and_arrive_in_their_places(monkeypatch):
    """Kind: a bucket that mixes types, forgets one or hands out the numbers of its neighbour."""
    monkeypatch.setattr(messages, "BUCKET", 10)
    sizes = [(2, 3), (4,), (5,), (3, 7), (1,), ()]
    given = [torch.full(size, n, dtype=[torch.float64, torch.float32][n % 2]) for n, size in enumerate(sizes)]
    found = [[int(gradient.max()) for gradient in bucket] for bucket in messages.buckets(given)]
    assert found == [[1], [3], [5], [0], [2, 4]]

    def work(group):
        module = nn.Module()
        for n, gradient in enumerate(given):
            module.register_parameter(str(n), nn.Parameter(torch.zeros_like(gradient)))
            if n != group.rank():
                module.get_parameter(str(n)).grad = gradient * (1 + group.rank())
        sum_gradients(module, group)
        return [parameter.grad for parameter in module.parameters()]

    for rank in run_ranks(work, 2):
        for n, summed in enumerate(rank):
            times = {0: 2, 1: 1}.get(n, 3)  # rank 0 has none of the first, rank 1 none of the second
            assert torch.equal(summed, times * given[n]) and summed.dtype == given[n].dtype
