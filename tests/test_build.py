"""The track *build a V4*: stubs are open, the solution is right, and a wrong answer is told what is wrong with it.

A reader's file is made here by changing a line of the solution, the way a reader would have written it.
"""

import copy
import re
import shutil
import tomllib

import forks
import nbformat
import pytest
import torch
from small import EXACT, off
from test_course_rules import counts, read
from test_house import ROOT, glossary_faults, statements

import minidsv4 as v4
from minidsv4.course import build, notebooks
from minidsv4.course.build import __main__ as command
from minidsv4.course.build.compare import parts
from minidsv4.course.build.hints import HINTS
from minidsv4.course.build.judge import Judge, all_close, float64
from minidsv4.course.build.parts import filled, random_config, random_weights
from minidsv4.course.build.steps import STEPS, Draw
from minidsv4.course.build.stubs import stubs
from minidsv4.course.build.track import NOTEBOOKS, TRACK
from minidsv4.options import READER_GONE

STUBS = ROOT / "notebooks" / "build" / "my_v4.py"
SOLUTION = ROOT / "notebooks" / "solutions" / "build" / "my_v4.py"
every_step = pytest.mark.parametrize("name", TRACK)


@pytest.fixture
def write(tmp_path):
    """A function that saves a text as a reader's file and gives its path."""

    def save(text):
        path = tmp_path / "my_v4.py"
        path.write_text(text, encoding="utf-8")
        return path

    return save


def solution_with(*changes):
    """The solution with some texts replaced; each must be there."""
    text = SOLUTION.read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the solution"
        text = text.replace(old, new)
    return text


def told(path, name, seed=None):
    """How a step of a file stands, as the reader reads it."""
    return str(build.verdicts(path, [name], seed)[0])


# --- stubs and solution ---


def test_the_stubs_are_the_solution_without_the_bodies_that_are_to_be_written():
    made = stubs(SOLUTION.read_text(encoding="utf-8"))
    right = "python -m minidsv4.course.build.stubs notebooks/solutions/build/my_v4.py > notebooks/build/my_v4.py"
    assert made == STUBS.read_text(encoding="utf-8"), right
    assert set(TRACK) == set(STEPS)


@every_step
def test_an_untouched_stub_is_not_written_yet(name):
    assert told(STUBS, name) == f"{name}: not written yet"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, None])
def test_every_step_of_the_solution_is_right_on_inputs_that_it_never_saw(seed):
    wrong = [str(verdict) for verdict in build.verdicts(SOLUTION, seed=seed) if verdict.state != build.RIGHT]
    assert wrong == []


@pytest.mark.parametrize("path", [STUBS, SOLUTION], ids=["stubs", "solution"])
def test_the_reader_s_file_keeps_the_glossary(path):
    assert list(glossary_faults(path.read_text(encoding="utf-8"))) == []


def test_the_solution_is_short():
    assert len(statements(SOLUTION.read_text(encoding="utf-8"))) < 300


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_the_solution_gives_the_model_s_logits_on_random_configs(seed):
    draw = Draw(seed)
    with float64():
        config = random_config(draw)
        model = random_weights(v4.Model(config), draw).use(v4.PLAIN if seed % 2 else v4.FAST)
        mine = filled(build.load(SOLUTION).Model(config), model)
        for n_tokens in (1, 2, 9, 40):
            ids_BT = draw.ids(3, n_tokens, config.vocab_size)
            assert off(mine(ids_BT), model(ids_BT)) < EXACT


@pytest.mark.slow
def test_the_solution_writes_with_the_shipped_weights_what_generate_writes():
    model, tokenizer = v4.load_pretrained(), v4.pretrained_tokenizer()
    my_v4 = build.load(SOLUTION)
    mine = my_v4.Model(model.config)
    mine.load_state_dict(build.weights(model))
    ids = [tokenizer.bos_id, *tokenizer.encode("def fib(n):")]
    assert my_v4.write_on(mine, ids, 40) == v4.generate(model, ids, 40, temperature=0)


# --- wrong answers, each with words that its message must hold ---

WRONG = {
    "norm: sum of squares": ("rms_norm", '"... d -> ... 1", "mean")', '"... d -> ... 1", "sum")', "sum of squares"),
    "norm: eps left out": ("rms_norm", '"mean") + eps)', '"mean"))', "eps is missing"),
    "norm: eps after the root": (
        "rms_norm",
        'x * torch.rsqrt(reduce(x * x, "... d -> ... 1", "mean") + eps)',
        'x / (reduce(x * x, "... d -> ... 1", "mean").sqrt() + eps)',
        "added to the root",
    ),
    "norm: weight left out": ("rms_norm", "else normed * weight", "else normed", "weight is not used"),
    "speed: YaRN left out": ("frequencies", "if yarn is None:", "if True:", "YaRN is not used"),
    "speed: ramp reversed": (
        "frequencies",
        "(1 - slowed) * radians + slowed *",
        "slowed * radians + (1 - slowed) *",
        "wrong way",
    ),
    "speed: betas swapped": (
        "frequencies",
        ("floor(pair_that_turns(yarn.beta_fast))", "ceil(pair_that_turns(yarn.beta_slow))"),
        ("floor(pair_that_turns(yarn.beta_slow))", "ceil(pair_that_turns(yarn.beta_fast))"),
        "`low` and `high` are swapped",
    ),
    "speed: betas swapped, guard at 0 only": (
        "frequencies",
        ("floor(pair_that_turns(yarn.beta_fast))", "ceil(pair_that_turns(yarn.beta_slow))", "max(high - low, 0.001)"),
        ("floor(pair_that_turns(yarn.beta_slow))", "ceil(pair_that_turns(yarn.beta_fast))", "(high - low or 0.001)"),
        "`low` and `high` are swapped",
    ),
    "speed: ramp not on whole pairs": (
        "frequencies",
        ("math.floor(pair_that_turns(yarn.beta_fast))", "math.ceil(pair_that_turns(yarn.beta_slow))"),
        ("pair_that_turns(yarn.beta_fast)", "pair_that_turns(yarn.beta_slow)"),
        "rounded down",
    ),
    "rope: pairs as in Llama": (
        "rotate",
        ('"... (r pair) -> pair ... r"', '"pair ... r -> ... (r pair)"'),
        ('"... (pair r) -> pair ... r"', '"pair ... r -> ... (pair r)"'),
        "as in Llama",
    ),
    "rope: out of order": ("rotate", '"pair ... r -> ... (r pair)"', '"pair ... r -> ... (pair r)"', "another order"),
    "rope: other way": (
        "rotate",
        ("even * angle.cos() - odd", "even * angle.sin() + odd"),
        ("even * angle.cos() + odd", "-even * angle.sin() + odd"),
        "turned the other way",
    ),
    "rope: first channels": (
        "rotate",
        ("still = x[..., :-n_rotary]", "rotary = x[..., -n_rotary:]", "torch.cat([still, turned]"),
        ("still = x[..., n_rotary:]", "rotary = x[..., :n_rotary]", "torch.cat([turned, still]"),
        "first R channels",
    ),
    "rope: rest dropped": ("rotate", "torch.cat([still, turned], dim=-1)", "turned", "are lost"),
    "window: one too many": ("window_map", "(age < window)", "(age <= window)", "one token too many"),
    "window: future": ("window_map", "(age >= 0) & (age < window)", "age < window", "later tokens"),
    "window: both sides": ("window_map", "(age >= 0) & (age < window)", "age.abs() < window", "as many later tokens"),
    "window: transposed": (
        "window_map",
        'rearrange(position, "t -> t 1") - position',
        'position - rearrange(position, "t -> t 1")',
        "transposed",
    ),
    "entries: the report's t": ("entry_map", "(torch.arange(n_tokens) + 1) //", "torch.arange(n_tokens) //", "t + 1"),
    "entries: in progress": (
        "entry_map",
        "(torch.arange(n_tokens) + 1) // ratio",
        "torch.arange(n_tokens) // ratio + 1",
        "One entry too many",
    ),
    "attend: scale": ("attend", "(dots * width**-0.5)", "dots", "not divided by the root of K"),
    "attend: no sink": (
        "attend",
        "torch.cat([score_BTHS, sink], dim=-1).softmax(dim=-1)[..., :-1]",
        "score_BTHS.softmax(dim=-1)",
        "sink is missing",
    ),
    "attend: sink scaled": (
        "attend",
        "repeat(sinks_H,",
        "repeat(sinks_H * width**-0.5,",
        "sink is multiplied by K^-0.5",
    ),
    "attend: mask inverted": ("attend", "hidden = ~", "hidden = ", "wrong way round"),
    "attend: hidden score 0": ("attend", "masked_fill(hidden, -math.inf)", "masked_fill(hidden, 0.0)", "score 0"),
    "attend: heads before tokens": (
        "attend",
        'einsum(weight_BTHS, entries_BSK, "b t h s, b s k -> b t h k")',
        'einsum(weight_BTHS, entries_BSK, "b t h s, b s k -> b h t k")',
        "Its axes are in the order [B, H, T, K]",
    ),
    "attend: softmax over queries": (
        "attend",
        "dim=-1).softmax(dim=-1)[",
        "dim=-1).softmax(dim=1)[",
        "runs over queries",
    ),
    "attend: softmax over queries, no sink": (
        "attend",
        "torch.cat([score_BTHS, sink], dim=-1).softmax(dim=-1)[..., :-1]",
        "score_BTHS.softmax(dim=1)",
        "runs over queries",
    ),
    "attend: softmax over heads": ("attend", "dim=-1).softmax(dim=-1)[", "dim=-1).softmax(dim=2)[", "over heads"),
    "output: groups dealt": (
        "grouped_output",
        '"b t (g h) k -> b t g (h k)"',
        '"b t (h g) k -> b t g (h k)"',
        "neighbours",
    ),
    "layer: not turned back": ("window_attention", "rotate(out_BTHK, -angle_THR)", "out_BTHK", "turns the output back"),
    "layer: turned on": (
        "window_attention",
        "rotate(out_BTHK, -angle_THR)",
        "rotate(out_BTHK, angle_THR)",
        "once more",
    ),
    "layer: queries not normed": (
        "window_attention",
        "rotate(rms_norm(query, None, config.rms_norm_eps), angle_THR)",
        "rotate(query, angle_THR)",
        "normed over its K channels",
    ),
    "layer: heads normed together": (
        "window_attention",
        'query = rearrange(self.wq_b(latent_BTQ), "b t (h k) -> b t h k", h=heads)\n        '
        "query_BTHK = rotate(rms_norm(query, None, config.rms_norm_eps), angle_THR)",
        "query = rms_norm(self.wq_b(latent_BTQ), None, config.rms_norm_eps)\n        "
        'query_BTHK = rotate(rearrange(query, "b t (h k) -> b t h k", h=heads), angle_THR)',
        "normed together",
    ),
    "layer: YaRN": (
        "window_attention",
        "            yarn = None\n",
        "",
        "has the base `rope_theta` alone",
    ),
    "pool: softmax over channels": ("pool", ".softmax(dim=2)", ".softmax(dim=3)", "over channels"),
    "pool: over entries": ("pool", ".softmax(dim=2)", ".softmax(dim=1)", "over entries"),
    "overlap: halves swapped": (
        "overlapped",
        "as_previous, as_current = halves",
        "as_current, as_previous = halves",
        "Slots 0 to M - 1 hold the tokens of the window before, with their first half",
    ),
    "overlap: own first": (
        "overlapped",
        "torch.cat([previous, as_current], dim=2)",
        "torch.cat([as_current, previous], dim=2)",
        "own window's slots come first",
    ),
    "overlap: window 0": (
        "overlap_compressor",
        "overlapped(gates, -math.inf)",
        "overlapped(gates, 0.0)",
        "logits of -inf",
    ),
    "overlap: bias": (
        "overlap_compressor",
        '"m (two k) -> (two m) k", two=2',
        '"m (two k) -> (m two) k", two=2',
        "slot by slot",
    ),
    "entries: at their index": (
        "compressor",
        "angle_TR[: n_full : self.ratio]",
        "angle_TR[: n_full // self.ratio]",
        "position m i",
    ),
    "entries: at the end": ("compressor", "angle_TR[: n_full :", "angle_TR[self.ratio - 1 : n_full :", "last token"),
    "index: relu left out": ("index_scores", "dots_BTUC.relu()", "dots_BTUC", "without the ReLU"),
    "index: relu late": (
        "index_scores",
        'dots_BTUC.relu(), "b t u, b t u c -> b t c")',
        'dots_BTUC, "b t u, b t u c -> b t c").relu()',
        "after the sum",
    ),
    "picks: ties": (
        "pick",
        ("order = score_BTC.sort(dim=-1, descending=True, stable=True).indices", "order[..., :n_picked]"),
        ("order = score_BTC.topk(min(n_picked, score_BTC.shape[-1]), dim=-1).indices", "order"),
        "qual scores",
    ),
    "picks: ties by the higher index": (
        "pick",
        "order = score_BTC.sort(dim=-1, descending=True, stable=True).indices",
        "order = score_BTC.sort(dim=-1, stable=True).indices.flip(-1)",
        "higher index",
    ),
    "picks: hidden fill up": ("pick", "n_picked], True) & sees_TC", "n_picked], True)", "fill up"),
    "picks: hidden late": ("pick", "score_BTC = score_BTC.masked_fill(~sees_TC, -math.inf)", "pass", "take places"),
    "picks: hidden late, by topk": (
        "pick",
        (
            "score_BTC = score_BTC.masked_fill(~sees_TC, -math.inf)",
            "order = score_BTC.sort(dim=-1, descending=True, stable=True).indices",
            "order[..., :n_picked]",
        ),
        ("pass", "order = score_BTC.topk(min(n_picked, score_BTC.shape[-1]), dim=-1).indices", "order"),
        "take places",
    ),
    "picks: hidden by 0": ("pick", "masked_fill(~sees_TC, -math.inf)", "masked_fill(~sees_TC, 0.0)", "a score of 0"),
    "picks: hidden by a product": (
        "pick",
        ("score_BTC = score_BTC.masked_fill(~sees_TC, -math.inf)", "n_picked], True) & sees_TC"),
        ("score_BTC = score_BTC * sees_TC", "n_picked], True)"),
        "a score of 0",
    ),
    "indexer: scale": ("indexer", "self.weights_proj(x_BTD) * self.scale", "self.weights_proj(x_BTD)", "(U Z)^-0.5"),
    "hca: no window": (
        "hca",
        (
            "torch.cat([entries, entries_BCK], dim=1)",
            "torch.cat([sees.expand(len(reads_BTC), -1, -1), reads_BTC], dim=-1)",
        ),
        ("entries_BCK", "reads_BTC"),
        "compressed entries only",
    ),
    "hca: the other base": (
        "hca",
        'if self.kind == "WINDOW":\n            base',
        "if True:\n            base",
        "the other kind of layer",
    ),
    "hca: not begun": (
        "hca",
        ('if self.kind == "WINDOW":\n            base', 'if self.kind != "WINDOW":\n            entries_BCK'),
        ("if True:\n            base", "if False:\n            entries_BCK"),
        "a layer with a window only",
    ),
    "hca: no YaRN": ("hca", "yarn = config.rope_scaling", "yarn = None", "YaRN is missing"),
    "hca: entries first": (
        "hca",
        "torch.cat([entries, entries_BCK], dim=1)",
        "torch.cat([entries_BCK, entries], dim=1)",
        "the compressed entries stand first, their map last",
    ),
    "hca: maps first": (
        "hca",
        "torch.cat([sees.expand(len(reads_BTC), -1, -1), reads_BTC], dim=-1)",
        "torch.cat([reads_BTC, sees.expand(len(reads_BTC), -1, -1)], dim=-1)",
        "map of the compressed entries stands first, the entries last",
    ),
    "hca: every entry visible": (
        "hca",
        'return entries_BCK, rearrange(sees_TC, "t c -> 1 t c")',
        'return entries_BCK, torch.ones_like(rearrange(sees_TC, "t c -> 1 t c"))',
        "Queries see every compressed entry",
    ),
    "csa: every entry visible": (
        "csa",
        "return entries_BCK, pick(score_BTC, sees_TC,",
        "return entries_BCK, pick(score_BTC, torch.ones_like(sees_TC),",
        "Queries see every compressed entry",
    ),
    "csa: entries first": (
        "csa",
        "torch.cat([entries, entries_BCK], dim=1)",
        "torch.cat([entries_BCK, entries], dim=1)",
        "the compressed entries stand first, their map last",
    ),
    "hca: YaRN with the other base": (
        "hca",
        "base = config.compress_rope_theta",
        "base = config.rope_theta",
        "YaRN with the base `rope_theta`",
    ),
    "csa: all read": (
        "csa",
        "pick(score_BTC, sees_TC, self.config.index_topk)",
        'rearrange(sees_TC, "t c -> 1 t c")',
        "Every visible entry is read",
    ),
    "sinkhorn: one round less": ("sinkhorn", "range(iterations - 1)", "range(iterations - 2)", "round"),
    "sinkhorn: one round more": ("sinkhorn", "range(iterations - 1)", "range(iterations)", "one round too many"),
    "sinkhorn: rows last": (
        "sinkhorn",
        (
            '    mixed = mixed / (reduce(mixed, "b t i j -> b t 1 j", "sum") + eps)\n    for',
            '        mixed = mixed / (reduce(mixed, "b t i j -> b t i 1", "sum") + eps)\n'
            '        mixed = mixed / (reduce(mixed, "b t i j -> b t 1 j", "sum") + eps)\n',
            "range(iterations - 1)",
        ),
        (
            "    for",
            '        mixed = mixed / (reduce(mixed, "b t i j -> b t 1 j", "sum") + eps)\n'
            '        mixed = mixed / (reduce(mixed, "b t i j -> b t i 1", "sum") + eps)\n',
            "range(iterations)",
        ),
        "Rows are divided last",
    ),
    "sinkhorn: rows last, a round less": (
        "sinkhorn",
        (
            '    mixed = mixed / (reduce(mixed, "b t i j -> b t 1 j", "sum") + eps)\n    for',
            '        mixed = mixed / (reduce(mixed, "b t i j -> b t i 1", "sum") + eps)\n'
            '        mixed = mixed / (reduce(mixed, "b t i j -> b t 1 j", "sum") + eps)\n',
        ),
        (
            "    for",
            '        mixed = mixed / (reduce(mixed, "b t i j -> b t 1 j", "sum") + eps)\n'
            '        mixed = mixed / (reduce(mixed, "b t i j -> b t i 1", "sum") + eps)\n',
        ),
        "Rows are divided last",
    ),
    "sinkhorn: rows last after the columns": (
        "sinkhorn",
        '        mixed = mixed / (reduce(mixed, "b t i j -> b t i 1", "sum") + eps)\n'
        '        mixed = mixed / (reduce(mixed, "b t i j -> b t 1 j", "sum") + eps)\n',
        '        mixed = mixed / (reduce(mixed, "b t i j -> b t 1 j", "sum") + eps)\n'
        '        mixed = mixed / (reduce(mixed, "b t i j -> b t i 1", "sum") + eps)\n',
        "Rows are divided last",
    ),
    "sinkhorn: old streams": (
        "sinkhorn",
        "logits_BTij.softmax(dim=-1)",
        "logits_BTij.softmax(dim=-2)",
        "over old streams",
    ),
    "streams: each normed": (
        "stream_logits",
        ('flat = rearrange(streams_BTND, "b t n d -> b t (n d)")', "rms_norm(flat, None, eps)"),
        ('flat = rearrange(rms_norm(streams_BTND, None, eps), "b t n d -> b t (n d)")', "flat"),
        "Each stream is normed",
    ),
    "mix: post not doubled": ("mix", "post_BTN = 2 * (", "post_BTN = (", "twice the sigmoid"),
    "mix: order": (
        "mix",
        "pre, post, carry = logits.split(sizes, dim=-1)",
        "pre, carry, post = logits.split([n, n * n, n], dim=-1)",
        "pre, carry, post",
    ),
    "mix: read without eps": ("mix", "pre_base).sigmoid() + config.hc_eps", "pre_base).sigmoid()", "eps"),
    "mix: carry new by old": (
        "mix",
        'carry_base, "b t (i j) -> b t i j"',
        'carry_base, "b t (j i) -> b t i j"',
        "new by old",
    ),
    "write: B transposed": (
        "write",
        '"b t i j, b t i d -> b t j d"',
        '"b t j i, b t i d -> b t j d"',
        "carry transposed",
    ),
    "write: streams lost": ("write", "return carried_BTND + einsum", "return einsum", "old streams are lost"),
    "swiglu: clamp late": (
        "swiglu",
        "F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)",
        "(F.silu(gate) * up).clamp(-limit, limit)",
        "product is clamped",
    ),
    "swiglu: gate from below": ("swiglu", "gate.clamp(max=limit)", "gate.clamp(-limit, limit)", "bound above only"),
    "swiglu: gelu": ("swiglu", "F.silu(gate.clamp(max=limit))", "F.gelu(gate.clamp(max=limit))", "GELU"),
    "swiglu: gelu by tanh": (
        "swiglu",
        "F.silu(gate.clamp(max=limit))",
        'F.gelu(gate.clamp(max=limit), approximate="tanh")',
        "GELU",
    ),
    "scores: no root": ("affinities", "weight_ED)).sqrt()", "weight_ED))", "root is missing"),
    "router: bias in the weights": (
        "router",
        "chosen_BTA = score_BTE.gather(",
        "chosen_BTA = (score_BTE if self.by_hash else biased).gather(",
        "bias is for the choice alone",
    ),
    "router: scale": ("router", "self.route_scale * chosen_BTA / total", "chosen_BTA / total", "route scale"),
    "router: not normalised": ("router", "* chosen_BTA / total", "* chosen_BTA", "divided by their sum"),
    "hash: next token": (
        "hash_router",
        "self.tid2eid[ids_BT]",
        "self.tid2eid[ids_BT.roll(-1, dims=1)]",
        "shifted by one",
    ),
    "expert: w1 and w3": (
        "expert",
        "swiglu(self.w1(x_BTD), self.w3(x_BTD), self.limit)",
        "swiglu(self.w3(x_BTD), self.w1(x_BTD), self.limit)",
        "changed places",
    ),
    "moe: no shared expert": (
        "moe",
        "y_BTD = self.shared_experts(x_BTD)",
        "y_BTD = torch.zeros_like(x_BTD)",
        "shared expert is missing",
    ),
    "moe: weight inside": (
        "moe",
        "y_BTD + weight * expert(x_BTD)",
        "y_BTD + expert(weight * x_BTD)",
        "multiplies what an expert reads",
    ),
    "block: norm before the collapse": (
        "block",
        ("self.attn_norm(collapse(streams_BTND, pre))", "self.ffn_norm(collapse(streams_BTND, pre))"),
        ("collapse(self.attn_norm(streams_BTND), pre)", "collapse(self.ffn_norm(streams_BTND), pre)"),
        "normed one by one",
    ),
    "block: stale streams": (
        "block",
        ("streams_BTND = write(streams_BTND, y_BTD, post, carry)", "mix(streams_BTND, *ffn_site"),
        ("old, streams_BTND = streams_BTND, write(streams_BTND, y_BTD, post, carry)", "mix(old, *ffn_site"),
        "before attention",
    ),
    "block: no norm": (
        "block",
        "self.ffn_norm(collapse(streams_BTND, pre))",
        "collapse(streams_BTND, pre)",
        "`ffn_norm` is missing",
    ),
    "model: no last norm": ("model", "self.head(self.norm(x_BTD))", "self.head(x_BTD)", "last norm"),
    "writing: prompt given back": ("write_on", "return new", "return [*ids, *new]", "prompt"),
}


@pytest.mark.parametrize("seed", [3, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_answer_is_told_what_is_wrong_with_it(mistake, seed, write):
    name, old, new, words = WRONG[mistake]
    changes = zip(*[(text,) if isinstance(text, str) else text for text in (old, new)], strict=True)
    path = write(solution_with(*changes))
    said = told(path, name, seed)
    for _ in range(4):  # in a draw `topk` may break the few ties as a stable sort does
        said = told(path, name, seed) if said.startswith("✓") else said
    assert said.startswith(f"{name}: not right yet. ") and words in said, said


UNNAMED = {
    "an input is left out": (
        "pool",
        "gates_BCSK + bias_SK",
        "gates_BCSK.abs() + 0 * bias_SK",
        "makes no use of `bias_SK`",
    ),
    "a weight is left out": (
        "overlap_compressor",
        "bias_SK = rearrange(self.ape,",
        "bias_SK = rearrange(torch.ones_like(self.ape).cumsum(0),",
        "makes no use of `ape`",
    ),
    "a number": ("swiglu", "F.silu(gate", "F.mish(gate", "At [0, 0, 0] it is "),
    "a factor": (
        "collapse",
        "return einsum(pre_BTN,",
        "return 3 * einsum(pre_BTN,",
        "Everything is 3 times what is due.",
    ),
    "a sign": ("collapse", "return einsum(pre_BTN,", "return -einsum(pre_BTN,", "Everything has the wrong sign."),
    "an axis backwards": ("pool", '"b c s k -> b c k", "sum")', '"b c s k -> b c k", "sum").flip(1)', "runs backwards"),
    "a place": (
        "rms_norm",
        "normed * weight",
        "torch.cat([normed[:, :1], (normed * weight)[:, 1:]], 1)",
        "but only at t = 0",
    ),
    "digits": ("collapse", "return einsum(pre_BTN,", "return einsum(pre_BTN.float().double(),", "four digits"),
    "the name of a part": (
        "mix",
        "return pre_BTN, post_BTN, carry_BTij",
        "return pre_BTN, post_BTN, carry_BTij**2",
        "In `carry`: ",
    ),
}


@pytest.mark.parametrize("mistake", UNNAMED)
def test_a_mistake_that_nobody_named_is_told_by_what_is_plain_to_see(mistake, write):
    name, old, new, words = UNNAMED[mistake]
    said = told(write(solution_with((old, new))), name, seed=3)
    assert words in said and f"x, due = build.inputs({name!r}, seed=3" in said, said


OF_ANOTHER_TYPE = {
    "window map of floats": (
        "window_map",
        "return (age >= 0) & (age < window)",
        "return ((age >= 0) & (age < window)).float()",
        "The dtype is float32, due is bool.",
    ),
    "entry map of ints": (
        "entry_map",
        'return torch.arange(n_entries) < rearrange(n_finished, "t -> t 1")',
        'return (torch.arange(n_entries) < rearrange(n_finished, "t -> t 1")).long()',
        "The dtype is int64, due is bool.",
    ),
    "picks of floats": (
        "pick",
        "torch.zeros_like(score_BTC, dtype=torch.bool)\n    return nothing.scatter(-1, order[..., :n_picked], True) &",
        "torch.zeros_like(score_BTC)\n    return nothing.scatter(-1, order[..., :n_picked], 1.0) *",
        "The dtype is float64, due is bool.",
    ),
    "experts as floats": (
        "router",
        "return picked_BTA, self.route_scale",
        "return picked_BTA.double(), self.route_scale",
        "The dtype is float64, due is int64.",
    ),
    "half the bits": (
        "frequencies",
        "        return radians\n",
        "        return radians.float()\n",
        "The dtype is float32, due is float64.",
    ),
    "a list of tensors": (
        "write_on",
        "logits_BTV[0, -1].argmax().item()",
        "logits_BTV[0, -1].argmax()",
        "The list holds a Tensor. A list of ints is due.",
    ),
    "a list of floats": ("write_on", "return new", "return [float(one) for one in new]", "The list holds a float."),
    "a tensor for a list": ("write_on", "return new", "return torch.tensor(new)", "It gives back a Tensor. A list of"),
    "a shorter list": ("write_on", "return new", "return new[1:]", "The shape is wrong"),
    "a list of other ids": ("write_on", "return new", "return [7, *new[1:]]", "The numbers are wrong, but only at t ="),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", OF_ANOTHER_TYPE)
def test_an_answer_of_another_type_is_not_right_though_its_numbers_are(mistake, write):
    name, old, new, words = OF_ANOTHER_TYPE[mistake]
    assert f"{name}: not right yet. {words}" in told(write(solution_with((old, new))), name, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new", "argument"),
    [
        ("write_on", "new.append(logits_BTV[0, -1]", "ids.append(logits_BTV[0, -1]", "ids"),
        ("write_on", "    return new", "    ids.clear()\n    return new", "ids"),
        ("swiglu", "gate.clamp(max", "gate.clamp_(max", "gate"),
        ("pick", "score_BTC.masked_fill(", "score_BTC.masked_fill_(", "score_BTC"),
    ],
)
def test_an_answer_that_changes_what_it_was_given_is_told_so(name, old, new, argument, write):
    said = told(write(solution_with((old, new))), name, seed=3)
    assert said == f"{name}: not right yet. It changes `{argument}` in place. The caller still needs it as it was."


def test_an_answer_that_looks_ahead_is_told_so(write):
    line = "        query_BTHK = rotate(rms_norm(query, None, config.rms_norm_eps), angle_THR)\n"
    path = write(solution_with((line, f"{line}        x_BTD = x_BTD + 0.1 * x_BTD.mean(1, keepdim=True)\n")))
    assert "It looks ahead" in told(path, "window_attention", seed=3)


@pytest.mark.slow
@every_step
def test_every_known_mistake_differs_from_the_right_answer_and_from_every_other(name):
    step = TRACK[name]
    told_of = [mistake.told for mistake in step.mistakes]
    assert all(words.endswith(".") and len(words) > 25 for words in told_of) and len(told_of) >= 2
    with float64():
        cases = list(step.draw(Draw(1)))
        answers = {mistake.name: of_cases(mistake.answer, cases) for mistake in step.mistakes}
        answers["right"] = of_cases(step.right, cases)
    for number, one in enumerate(answers):
        for other in list(answers)[:number]:
            assert not all(map(all_close, answers[one], answers[other])), (one, other)


def of_cases(answer, cases):
    """The answer to each case, as tuples; with nothing in it where the mistake cannot be made."""
    return [parts(answer(*copy.deepcopy(arguments))) for arguments in cases]


# --- inputs are fresh ---


def test_an_answer_that_is_hard_coded_to_one_input_fails_on_the_next(write):
    (case,) = TRACK["index_scores"].draw(Draw(5))
    numbers = f"torch.tensor({TRACK['index_scores'].right(*case).tolist()})"
    text = SOLUTION.read_text(encoding="utf-8")
    body = text[text.index("    dots_BTUC = einsum") : text.index("def pick(")]
    path = write(text.replace(body, f"    return {numbers}\n\n\n"))
    assert told(path, "index_scores", seed=5).startswith("✓")
    assert "The shape is wrong" in told(path, "index_scores")


def test_two_checks_draw_different_inputs_and_a_seed_the_same():
    with float64():
        seeds = {Judge(build.load(STUBS)).seed for _ in range(8)}
        one, other = (next(TRACK["attend"].draw(Draw(7)))[0] for _ in range(2))
    assert len(seeds) == 8 and torch.equal(one, other)


@pytest.mark.slow
@every_step
def test_inputs_gives_what_the_check_of_that_seed_drew_and_answer_the_reader_s_answer_to_it(name):
    with float64():
        n_cases = len(list(TRACK[name].draw(Draw(7))))
    for case in range(n_cases):
        x, due = build.inputs(name, seed=7, case=case)
        assert all_close(build.answer(name, x, SOLUTION), parts(due))
    with pytest.raises(ValueError, match=f"case: {n_cases} is not drawn for {name}; give 0 to {n_cases - 1}"):
        build.inputs(name, seed=7, case=n_cases)


def test_the_inputs_that_a_message_offers_are_those_of_the_case_that_is_wrong(write):
    path = write(solution_with(("F.silu(gate", "F.mish(gate")))
    said = told(path, "swiglu", seed=3)
    assert "x, due = build.inputs('swiglu', seed=3); mine = build.answer('swiglu', x)." in said
    x, due = build.inputs("swiglu", seed=3)
    first = build.answer("swiglu", x, path)[0, 0, 0].item()
    assert f"At [0, 0, 0] it is {first:.4g}, due is {due[0, 0, 0].item():.4g}." in said


def test_the_inputs_that_a_message_offers_say_which_case_it_was(write):
    later = "even * angle.cos() - odd * angle.sin() + 0.1 * (still.shape[-1] == 0) * odd.abs()"
    said = told(write(solution_with(("even * angle.cos() - odd * angle.sin()", later))), "rotate", seed=3)
    assert "build.inputs('rotate', seed=3, case=1)" in said, said


# --- a file half done ---

TARGET = '    carried_BTND = einsum(carry_BTij, streams_BTND, "b t i j, b t i d -> b t j d")\n'


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("    carried_BTND = nothing_like_it\n", "NameError: name 'nothing_like_it' is not defined"),
        ("    raise KeyError('x')\n", "KeyError: 'x'"),
        ("    return\n", "It gives back None: is the `return` missing?"),
        ("    return ...\n", "It gives back `...`."),
        ("    return 3.0\n", "It gives back a float. A tensor is due."),
        ("    return streams_BTND > 0\n", "The dtype is bool, due is float64."),
        ("    return streams_BTND.sum(2)\n", "It lacks the axis N (residual streams)."),
        ("    streams_BTND *= 2\n    return streams_BTND\n", "It changes `streams_BTND` in place."),
        ("    return streams_BTND * torch.nan\n", "It holds NaN everywhere."),
        ("    raise NotImplementedError\n", "write: not written yet"),
        ("    collapse(0, 0)\n", "Tensor type unknown to einops"),
    ],
)
def test_a_half_done_function_is_told_in_a_line_or_two_and_never_stops(line, wanted, write, capsys):
    path = write(solution_with((TARGET, line)))
    build.check("write", path)
    said = capsys.readouterr().out
    assert wanted in said and said.count("\n") <= 3 and "Traceback" not in said, said
    if "Error" in wanted:
        number = path.read_text().splitlines().index(line.rstrip()) + 1
        assert f"my_v4.py, line {number}, in write:" in said
        assert f"{line}    with streams_BTND [" in said


def test_a_step_that_calls_one_that_is_not_right_waits_and_says_which(write):
    stub = "    raise NotImplementedError\n"
    assert told(write(solution_with((TARGET, stub))), "block") == (
        "block: waits. It needs `write`, which is not written yet: see build.check('write')."
    )
    wrong = TARGET.replace("b t j d", "b t i d").replace("b t i j, b t i d", "b t i j, b t j d")
    assert "It needs `write`, which is not right yet" in told(write(solution_with((TARGET, wrong))), "block")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x = (\n", "rotate: my_v4.py, line 1: '(' was never closed: x = ("),
        ("import torch\n\ny = 1 / 0\n", "my_v4.py, line 3, outside of functions: ZeroDivisionError: division by zero"),
        ("import torch\n", "rotate: not right yet. The file has no `rotate`."),
        ("def rotate(x):\n    return x\n", "TypeError: rotate() takes 1 positional argument but 2 were given"),
        ("def rotate(x, angle):\n    raise SystemExit\n", "SystemExit"),
        ("raise SystemExit\n", "my_v4.py, line 1, outside of functions: SystemExit"),
    ],
)
def test_a_file_that_does_not_load_is_told_in_a_sentence(text, wanted, write, capsys):
    build.check("rotate", write(text))
    assert wanted in capsys.readouterr().out


def test_a_missing_file_is_told_in_a_sentence(tmp_path, capsys):
    build.check("rotate", tmp_path / "my_v4.py")
    assert "there is no my_v4.py here" in capsys.readouterr().out


def test_an_edit_shows_at_the_next_check_even_within_a_second(write, capsys):
    for sign in "+-+-":
        path = write(solution_with(("even * angle.cos() - odd", f"even * angle.cos() {sign} odd")))
        build.check("rotate", path)
        assert ("✓" in capsys.readouterr().out) == (sign == "-")


def test_constructors_that_were_changed_are_told_by_the_names_of_tensors(write):
    said = told(write(solution_with(("self.attn_sink = nn", "self.sinks = nn"))), "window_attention")
    assert "attn_sink" in said and "sinks" in said and said.count("\n") <= 2, said


def test_checking_leaves_torch_as_it_was():
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state()
    build.verdicts(SOLUTION)
    after = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


# --- hints and the command ---


@every_step
def test_every_step_has_three_hints(name, capsys):
    assert list(HINTS) == list(TRACK) and len(HINTS[name]) == 3
    for strength in (1, 2, 3):
        build.hint(name, strength)
    assert all(len(line) > 15 for line in capsys.readouterr().out.splitlines())
    assert "`" in HINTS[name][2]


def test_hints_and_steps_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="strength = 4 is not known; give 1, 2 or 3"):
        build.hint("rotate", 4)
    with pytest.raises(ValueError, match="step: 'rope' is not part of the track; there are rms_norm, "):
        build.check("rope")


@pytest.mark.slow
def test_the_command_prints_the_table_and_its_code_says_whether_all_is_right(capsys, tmp_path):
    assert command.main(["--file", str(SOLUTION)]) == 0
    assert f"{len(TRACK)} of {len(TRACK)} steps are right" in capsys.readouterr().out
    assert command.main(["--file", str(STUBS)]) == 1
    said = capsys.readouterr().out
    assert f"0 of {len(TRACK)} steps are right" in said and said.count("not written yet") == len(TRACK)
    assert command.main(["rotate", "--file", str(SOLUTION)]) == 0
    assert capsys.readouterr().out == "✓ rotate: right, on 2 fresh inputs\n"
    assert command.main(["--file", str(tmp_path / "x.py")]) == 2
    assert capsys.readouterr().err == "file: there is no x.py here; start Python in its folder, or give its path\n"
    assert command.main(["rope", "--file", str(SOLUTION)]) == 2


@pytest.mark.slow
def test_the_command_runs_from_a_shell():
    done = forks.module("minidsv4.course.build", "rotate", "--file", str(STUBS), cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (1, "rotate: not written yet\n", "")


@pytest.mark.slow
def test_a_reader_of_the_table_who_has_gone_hears_no_complaint():
    """As behind `| head`: stdout is a pipe whose other end is closed."""
    gone = "import os; ends = os.pipe(); os.dup2(ends[1], 1); os.close(ends[0])"
    done = forks.module("minidsv4.course.build", "--file", str(STUBS), before=gone, cwd=ROOT)
    assert (done.returncode, done.stderr) == (READER_GONE, "")


# --- the notebooks ---


def notebooks_of_the_track():
    """Name and path of each notebook of the track."""
    return {name: path for name, path in notebooks.every().items() if name.startswith("build/")}


def outputs(notebook):
    """What the code cells print, by source."""
    printed = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            printed[cell.source] = "".join(output.get("text", "") for output in cell.outputs)
    return printed


def test_the_notebooks_check_every_step_once_in_the_order_of_the_track():
    assert [f"build/{stem}" for stem in NOTEBOOKS] == list(notebooks_of_the_track())
    for stem, names in NOTEBOOKS.items():
        printed = outputs(read(notebooks.FOLDER / "build" / f"{stem}.ipynb"))
        checks = {f'build.check("{name}")': f"{name}: not written yet\n" for name in names}
        assert {source: text for source, text in printed.items() if source.startswith("build.check")} == checks
        assert [source for source in printed if source in checks] == list(checks)


@pytest.mark.parametrize("name", notebooks_of_the_track())
def test_the_notebooks_of_the_track_keep_the_course_s_rules_and_say_how_to_get_a_hint(name):
    notebook = read(notebooks_of_the_track()[name])
    assert not any(counts(notebook).values()), counts(notebook)
    text = "".join(cell.source for cell in notebook.cells)
    for step in NOTEBOOKS[name.removeprefix("build/")]:
        assert f'build.hint("{step}", 1)' in text, step
    linked = re.findall(r"\]\((?!https:)([^)#]+)\)", text)
    assert [link for link in linked if not (notebooks.FOLDER / "build" / link).resolve().exists()] == []


def test_the_line_by_which_the_first_notebook_shows_the_inputs_of_a_check_runs(monkeypatch):
    text = "".join(cell.source for cell in read(notebooks_of_the_track()["build/1_pieces"]).cells)
    (line,) = re.findall(r"```python\n(.+)\n```", text)
    monkeypatch.chdir(SOLUTION.parent)
    found = {"build": build}
    exec(line, found)
    assert off(found["mine"], found["due"]) < EXACT and len(found["x"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks_of_the_track())
def test_with_the_solution_in_place_of_the_stubs_every_cell_of_the_track_says_that_it_is_right(name, tmp_path):
    path = notebooks_of_the_track()[name]
    shutil.copy(SOLUTION, tmp_path / "my_v4.py")
    done = nbformat.reads(notebooks.run(read(path), tmp_path / path.name), as_version=4)
    printed = outputs(done)
    for step in NOTEBOOKS[path.stem]:
        assert printed[f'build.check("{step}")'].startswith(f"✓ {step}: right, on ")
    if path.stem == list(NOTEBOOKS)[-1]:
        last = list(printed.values())[-1]
        assert "yours: def fib(n):" in last and "✓ token for token the same" in last


def test_no_tool_leaves_out_a_folder_because_it_is_called_build():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert "build" not in settings["pytest"]["ini_options"]["norecursedirs"]
    assert "build" not in settings["ruff"]["exclude"]
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert "/build/" in ignored and "build/" not in ignored
