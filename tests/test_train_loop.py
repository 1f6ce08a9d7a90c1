"""The training loop: it learns, it stops when told, it goes on as if it had never stopped; bits per byte are exact."""

import contextlib
import io
import math
import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch

from minidsv4 import Config, Model
from minidsv4.model.layer import watch
from minidsv4.model.moe import LearnedRouter
from minidsv4.train.data import Batches, Mixture, Packed
from minidsv4.train.loop import Trainer, bits_per_byte, fastest_threads, stop_on_interrupt
from minidsv4.train.programs import programs
from minidsv4.train.recipe import Recipe
from minidsv4.train.tokenizer import Tokenizer

SOURCES = [program.source for program in programs(seed=2, n=60)]
# A window and CSA; a router by table, one that learns, and the MTP block's.
SHALLOW = dict(num_hidden_layers=2, compress_ratios=(0, 4, 0), hc_sinkhorn_iters=3)
CONFIG = Config.tiny().replace(vocab_size=300, **SHALLOW)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(SOURCES, vocab_size=300)


@pytest.fixture
def batches(tokenizer):
    return Batches(tokenizer.encode_all(SOURCES), batch_size=2, length=24, seed=0)


def new_model():
    torch.manual_seed(0)
    return Model(CONFIG).double()


def new_trainer(batches, **recipe):
    return Trainer(new_model(), batches.at, Recipe(**{"warm_up": 2, "rate": 1e-2} | recipe))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Uniform(torch.nn.Module):
    """Gives every token but the first two the same probability, and remembers what it was asked."""

    def __init__(self, n_tokens):
        super().__init__()
        self.logits_V = torch.nn.Parameter(torch.zeros(n_tokens, dtype=torch.float64))
        self.logits_V.data[:2] = -torch.inf

    def forward(self, ids_BT):
        return self.logits_V.expand(*ids_BT.shape, -1)


# --- learning ---


@pytest.mark.slow
def test_a_model_learns_programs(batches):
    trainer = new_trainer(batches, steps=20)
    assert trainer.train() and trainer.step == len(trainer.losses) == 20
    # 300 tokens at random cost ln 300 = 5.7 nats; which ones are frequent is learned within 20 steps (measured: 4.4)
    assert trainer.losses[0] == pytest.approx(math.log(300), abs=0.3) and sum(trainer.losses[-5:]) / 5 < 5.2


@pytest.mark.slow
def test_a_run_that_stopped_and_went_on_equals_one_that_never_stopped(batches):
    straight = new_trainer(batches, steps=6)
    straight.train()
    first = new_trainer(batches, steps=6)
    for step in range(3):
        first.learn(batches.at(step))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    second = new_trainer(batches, steps=6)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    second.train()
    assert torch.equal(weights(second.model), weights(straight.model)) and second.losses == straight.losses


def test_padding_is_no_token_of_a_step_and_moves_no_bias(tokenizer):
    """Kind: counts equal those by hand; before, padding was counted, logged, and load that the biases followed."""
    packed = Packed(tokenizer.encode_all(SOURCES), length=48, seed=0, align=12)
    batch = Mixture([packed], [1], batch_size=4, seed=0).at(0)
    real = [(b, t) for b, row in enumerate(batch.document_BT.tolist()) for t in range(49) if row.count(row[t]) > 1]
    assert 4 * 49 > len(real) > 4 * 24
    trainer = Trainer(new_model(), lambda step: batch, Recipe(steps=1, warm_up=2, balance_speed=0.25))
    with watch(trainer.model, LearnedRouter) as calls:
        record = trainer.learn(batch)
    worst = 0.0
    for router, _, routed in calls:
        load = [0] * 9
        for b, t in real:
            for expert in routed.picked_BTA[b, t].tolist() if t < routed.picked_BTA.shape[1] else []:
                load[expert] += 1
        assert router.bias.tolist() == [0.25 * ((sum(load) > 9 * n) - (sum(load) < 9 * n)) for n in load]
        worst = max(worst, 9 * max(load) / sum(load) - 1)
    n = sum(a == b for row in batch.document_BT.tolist() for a, b in zip(row, row[1:]))
    assert record["n"] == trainer.tokens == n < 4 * 48
    assert record["max_violation"] == pytest.approx(worst, abs=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_diverges_stops_with_a_sentence_before_it_spoils_a_weight(batches, optimizer):
    """Kind: NaN on its way into the weights; before, a run went on to its end and saved them."""
    trainer = new_trainer(batches, steps=5, rate=3e-3, optimizer=optimizer, balance_speed=0.01)
    loss = trainer.model.loss

    def diverging(*arguments, **options):
        losses = loss(*arguments, **options)
        return losses._replace(total=losses.total * (torch.nan if trainer.step == 2 else 1))

    trainer.model.loss = diverging
    with pytest.raises(ValueError, match=r"train: step 3 has loss nan .*; lower rate = 0.003 or raise warm_up"):
        trainer.train()
    assert trainer.step == 2 == len(trainer.losses)
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_only_matrices_decay(batches):
    groups = new_trainer(batches, steps=1).optimizer.param_groups
    kinds = {group["weight_decay"]: {parameter.ndim for parameter in group["params"]} for group in groups}
    assert min(kinds[0.1]) == 2 and kinds[0.0] == {1}


def test_gradients_are_clipped_to_the_norm_that_the_recipe_says(batches):
    trainer = new_trainer(batches, steps=1, clip=1e-3)
    trainer.learn(batches.at(0))
    named = list(trainer.model.named_parameters())
    for of_indexers in (True, False):  # each by its own norm
        gradients = [p.grad.flatten() for name, p in named if (".indexer." in name) == of_indexers]
        norm = torch.cat(gradients).norm().item()
        assert norm == pytest.approx(1e-3, rel=1e-3)  # torch adds 1e-6 to the norm it divides by


def test_the_rate_rises_linearly_and_falls_as_a_cosine_to_a_tenth():
    recipe = Recipe(steps=100, rate=1.0, warm_up=10)
    rates = [recipe.rate_at(step, recipe.progress(step, 0.0)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[4] == pytest.approx(0.5, abs=0.01)
    assert rates[50] == pytest.approx(0.55) and rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def clock(monkeypatch, readings):
    """The training loop reads these times, in seconds, one after the other."""
    monkeypatch.setattr("minidsv4.train.loop.time", SimpleNamespace(perf_counter=iter(readings).__next__))


@pytest.mark.parametrize(("one", "two", "fastest"), [(2.0, 1.0, 2), (1.0, 2.0, 1)])
def test_the_faster_number_of_threads_is_taken_for_packed_rows_too(tokenizer, monkeypatch, one, two, fastest):
    """Kind: a batch of two parts taken for its token ids; and where there is one thread there is no choice to test."""
    packed = Packed(tokenizer.encode_all(SOURCES), length=48, seed=0, align=12)
    mixture = Mixture([packed], [1], batch_size=4, seed=0)
    clock(monkeypatch, [0.0, 9.0, 10.0, 10.0 + one, 20.0, 29.0, 30.0, 30.0 + two])  # the first of each warms up
    asked = [
        2
    ]  # told and not done: on a busy machine two threads that wait for each other take a hundred times as long
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1])
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert fastest_threads(new_trainer(mixture, steps=1)) == fastest
    assert asked[-1] == 2 and {1, 2} <= set(asked)


def test_measuring_threads_changes_nothing(batches):
    trainer, before = new_trainer(batches, steps=1), torch.get_num_threads()
    untouched = weights(trainer.model)
    fastest_threads(trainer)
    assert torch.equal(weights(trainer.model), untouched) and torch.get_num_threads() == before
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


# --- stopping ---


def test_a_budget_of_seconds_ends_the_run_and_counts_only_time_spent_learning(batches, monkeypatch):
    clock(monkeypatch, [0.0, 0.125, 7.0, 7.125, 9.0, 9.125])  # three steps of an eighth of a second, and pauses
    trainer = new_trainer(batches, seconds=0.3)
    assert trainer.train() and trainer.train()
    assert (trainer.step, trainer.seconds) == (3, 0.375)
    assert trainer.recipe.progress(0, 0.15) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("stderr", ["none", "closed", "full", "reader gone"])
def test_a_stderr_that_takes_no_words_ends_no_training(stderr, batches, monkeypatch):
    """Kind: what a run can do without does not end it; before, the bar's first error did."""
    reader, writer = os.pipe()
    os.close(reader)
    files = {"closed": open(os.devnull, "w"), "full": open("/dev/full", "w"), "reader gone": open(writer, "w")}
    files["closed"].close()
    monkeypatch.setattr("sys.stderr", files.get(stderr))
    trainer = new_trainer(batches, steps=3)
    assert trainer.train() and trainer.step == 3
    for name in ("full", "reader gone"):
        with contextlib.suppress(OSError):
            files[name].close()


def test_ctrl_c_ends_the_run_after_the_step_under_way(batches):
    def batch_at(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return batches.at(step)

    trainer = Trainer(new_model(), batch_at, Recipe(steps=50))
    assert trainer.train() is False and trainer.step == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), stop_on_interrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(5)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [({}, "neither"), ({"steps": 0}, "steps = 0"), ({"seconds": -1.0}, "seconds"), ({"seconds": math.nan}, "nan")],
)
def test_a_recipe_without_an_end_is_refused_with_a_sentence(recipe, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**recipe)


WRONG = (math.nan, math.inf, -1, 10**400, "1", True, [1], None)
FIELDS = ("rate", "warm_up", "decay", "optimizer", "weight_decay", "clip", "balance_speed", "mtp_weights")


@pytest.mark.parametrize("name", FIELDS)
def test_a_value_that_no_run_can_have_is_refused_by_its_field(name):
    """Kind: `warm_up=0` and others that end in a division by zero, in NaN or in a TypeError at some step."""
    more = {
        "warm_up": (0, 0.5),
        "rate": (0,),
        "clip": (0,),
        "decay": (0, 1.5),
        "mtp_weights": ((1,), (1, -1), (1, "a")),
    }
    for wrong in (*WRONG, *more.get(name, ())):
        with pytest.raises(ValueError, match=rf"^recipe: {name} = .* cannot be; it is "):
            Recipe(steps=5, **{name: wrong})


def test_a_recipe_may_do_without_decay_of_weights_balance_and_drafts():
    recipe = Recipe(steps=5, warm_up=1, weight_decay=0, balance_speed=0, mtp_weights=[0, 0])
    assert recipe.rate_at(0, 0.0) == recipe.rate and recipe.mtp_weight(1.0) == 0


# --- bits per byte ---


def test_bits_per_byte_of_even_odds_are_tokens_times_log2_of_the_choices_over_bytes(tokenizer):
    texts = ["def f(x):\n    return x\n", "é = 1\n", "", "print('a b c')\n" * 9]
    n_tokens, n_bytes = sum(map(len, tokenizer.encode_all(texts))), sum(len(text.encode()) for text in texts)
    for length in (3, 8, 1000):
        measured = bits_per_byte(Uniform(300), tokenizer, texts, length)
        assert measured == pytest.approx(n_tokens * math.log2(298) / n_bytes, rel=1e-9)


@pytest.mark.slow
def test_bits_per_byte_equal_the_sum_over_tokens_one_at_a_time(tokenizer):
    model, text, length = new_model(), SOURCES[0] + SOURCES[1], 16
    tokens, nats = [0, *tokenizer.encode(text)], 0.0
    for place in range(1, len(tokens)):
        start = (place - 1) // length * length
        with torch.no_grad():
            nats -= model(torch.tensor([tokens[start:place]]))[0, -1].log_softmax(-1)[tokens[place]].item()
    wanted = nats / math.log(2) / len(text.encode())
    assert bits_per_byte(model, tokenizer, [text], length) == pytest.approx(wanted, rel=1e-10)


def test_texts_without_a_byte_cannot_be_measured(tokenizer):
    with pytest.raises(ValueError, match="hold no byte"):
        bits_per_byte(Uniform(300), tokenizer, ["", ""])
