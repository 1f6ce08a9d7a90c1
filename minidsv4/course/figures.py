"""The figures of figures/, drawn from the package: files for documents that cannot run a cell.

    python -m minidsv4.course.figures          draw them all
    python -m minidsv4.course.figures --check  say which file differs from what is drawn now

Letters are drawn as paths and no date is kept, so the same matplotlib writes the same text; another machine's last
digit may differ, which is why numbers are compared to 0.02 pt.
"""

import argparse
import copy
import dataclasses
import functools
import io
import itertools
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from minidsv4.bench.phases import Point
from minidsv4.config import Config, LayerKind
from minidsv4.cost import V32, flops, megamoe, memory, schedule
from minidsv4.cost.hardware import DEVICES
from minidsv4.course import plots
from minidsv4.course.plots import HEADING
from minidsv4.course.record import record
from minidsv4.experiments import recall, streams
from minidsv4.lowbit import rounding
from minidsv4.model.indexer import Hadamard
from minidsv4.model.layer import watch
from minidsv4.model.model import Model
from minidsv4.model.moe import LearnedRouter
from minidsv4.ops import index_scores, rotate, stable_topk
from minidsv4.parallel import context
from minidsv4.serve.speculate import MAX_PENDING, Speculation, Speculator
from minidsv4.train import balance
from minidsv4.train.data import Batches
from minidsv4.train.loop import Recipe, Trainer
from minidsv4.train.muon import SCHEDULE
from minidsv4.train.plan import Plan
from minidsv4.train.programs import programs
from minidsv4.train.routing import Anticipation
from minidsv4.train.tokenizer import Tokenizer


def flops_and_cache():
    """The report's figure 1: FLOPs of one token and cache of one sequence against length, for V3.2, Pro and Flash."""
    n_tokens = 4000 * np.arange(1, 251)
    colours = {
        "V3.2": plots.COLOURS["masked"],
        "V4-Pro": plots.COLOURS["query"],
        "V4-Flash": plots.COLOURS["compressed"],
    }
    panels = {
        "Work for one more token": ("FP8-equivalent TFLOP", flops.decode, flops.weighted, 1e12),
        "Memory of one sequence": ("cache, GB", memory.cache, lambda held: sum(held.values()), 1e9),
    }
    figure = Figure(figsize=(6.0, 3.0))
    for axes, (title, (unit, amounts, total, scale)) in zip(figure.subplots(1, 2), panels.items()):
        curves = [total(amounts(model, n_tokens)) / scale for model in (V32(), Config.pro(), Config.flash())]
        for (name, colour), curve, style, lift in zip(colours.items(), curves, ("--", "-", "-."), (0, 5, -5)):
            axes.plot(n_tokens / 1000, curve, color=colour, linestyle=style, label=name)
            words = name if name == "V3.2" else f"{name}: 1/{curves[0][-1] / curve[-1]:.1f}"
            axes.annotate(words, (1000, curve[-1]), (4, lift), textcoords="offset points", color=colour, va="center")
        axes.set(xlabel="tokens in context, thousands", ylabel=unit, xlim=(0, 1000), ylim=(0, None))
        axes.set_title(title, fontweight="normal")
    figure.suptitle("At a million tokens V4 needs 1/4 to 1/14 of what V3.2 needs", **HEADING)
    return figure


def moved_text():
    """Notebook 01: a pair of channels of one window layer's answer while its text moves over 63 places."""
    torch.manual_seed(0)
    model, x_BTD = Model(Config.tiny()).double(), torch.randn(1, 12, 24, dtype=torch.float64)
    raw, back = [], []
    for place in range(63):
        positions = model.positions(place, 12)[LayerKind.WINDOW]
        with record(model) as rec:
            model.layers[0].attn(x_BTD, positions, model.new_cache().layers[0])
        answer_HK = rec[0].attended_BTHK[0, -1]
        raw.append(answer_HK[0, -6:-4].numpy())
        back.append(rotate(answer_HK, positions.turns()[11:].conj())[0, -6:-4].numpy())
    return plots.moved_text(np.array(raw), np.array(back))


def small_hybrid(ratios=(0, 4, 8), window=8):
    """Notebooks 04, 05: a small random model in float64, a layer a ratio (0 window, 4 CSA, else HCA), and 32 ids.

    Every matrix is drawn wide, so that neither weights nor picks are uniform.
    """
    sizes = dict(num_hidden_layers=len(ratios), num_hash_layers=1, sliding_window=window, index_topk=2)
    model = Model(Config.tiny().replace(compress_ratios=(*ratios, 0), **sizes)).double()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model, torch.randint(model.config.vocab_size, (1, 32))


def masks():
    """Notebook 04: the masks of a window, a CSA and an HCA layer."""
    model, ids = small_hybrid()
    with record(model) as rec:
        model(ids)
    return plots.masks([rec[layer] for layer in range(3)])


def pooled_tokens():
    """Notebook 02: the shares of pooled tokens in a CSA and an HCA layer whose gates choose at random."""
    torch.manual_seed(0)
    sizes = dict(num_hidden_layers=2, num_hash_layers=1, compress_ratios=(4, 8, 0))
    model = Model(Config.tiny().replace(**sizes)).double()
    for block in model.layers:
        block.attn.compressor.wgate.weight.data *= 10
    with record(model) as rec:
        model(torch.randint(60, (1, 32)))
    return plots.pooled_tokens(*(rec[layer].slot_weights()[0, :, :, 0].detach().numpy() for layer in (0, 1)))


def cache_while_decoding():
    """Notebook 05: what a small model's cache holds after each of 32 tokens."""
    model, ids = small_hybrid()
    cache, reports = model.new_cache(), []
    for token in ids.split(1, dim=1):
        model(token, cache=cache)
        reports.append(cache.report())
    return plots.cache_growth(reports)


@functools.cache
def depth_flows(moved=0.2, n_layers=64):
    """Notebook 06: {kind: Flow of each of 5 seeds} through random stacks whose sites moved by noise of that width."""
    x_BTD = torch.randn(1, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {
        kind: [streams.flow(streams.Stack(kind, n_layers, 16, moved=moved, seed=seed), x_BTD) for seed in range(5)]
        for kind in ("residual", "HC", "mHC")
    }


def streams_through_depth():
    """Notebook 06: signal, gradient and gain through 64 layers of a residual, plain HC and mHC."""
    return plots.streams_through_depth(depth_flows())


@functools.cache
def skewed_stream(speed, seed=0, n_steps=200):
    """Notebook 07: a fixed router whose tokens all lean one way; loads and biases [steps, E] after each step."""
    generator = torch.Generator().manual_seed(seed)
    router = LearnedRouter(Config.tiny().replace(n_routed_experts=8)).double()
    draw = functools.partial(torch.randn, dtype=torch.float64, generator=generator)
    router.weight.data = 0.3 * draw(8, 24)
    lean_D, loads, biases = 1.5 * draw(24), [], []
    for _ in range(n_steps):
        with balance.balanced(router, speed), watch(router, LearnedRouter) as calls:
            router(lean_D + draw(1, 512, 24), None)
        loads.append(balance.loads(calls)[router])
        biases.append(router.bias.clone())
    return torch.stack(loads), torch.stack(biases)


def bias_rule():
    """Notebook 07: MaxVio of a skewed stream without and with the bias rule, and the biases."""
    (plain, _), (ruled, bias_TE) = skewed_stream(0.0), skewed_stream(0.01)
    without, with_rule = ([balance.max_violation(load) for load in loads] for loads in (plain, ruled))
    return plots.bias_rule(without, with_rule, bias_TE.numpy())


def planted_recall():
    """Notebook 10: answers by distance at 4 times the length learnt, and what the indexer's picks catch."""
    return plots.planted_recall(recall.measured(), recall.EDGES, recall.LENGTH)


def recipe_over_steps():
    """Notebook 10: the recipe of the mini model over its steps."""
    plan = Plan.read("mini")
    stages, recipe = plan.stages, plan.recipe
    numbers = [plan.stage_and_step(step)[0] for step in range(recipe.steps)]
    rates = [recipe.rate_at(step, step / recipe.steps) for step in range(recipe.steps)]
    weights = [recipe.mtp_weight(step / recipe.steps) for step in range(recipe.steps)]
    kinds, lengths = ([getattr(stages[number], name) for number in numbers] for name in ("attention", "length"))
    return plots.schedule(kinds, rates, weights, lengths)


@functools.cache
def provoked_spike(seed, calm=30, after=18, fault=6, factor=30):
    """Notebook 10: a small model learns programs; then the learning rate is `factor` times too high for `fault` steps.

    returns  ("off", "on"): the loss of one fixed batch before and after each of `after` steps from the same state on,
             plain and with anticipatory routing of delay 4
    """
    batches, recipe = small_batches(seed), functools.partial(Recipe, steps=1 << 30, warm_up=5)
    torch.manual_seed(seed)
    first = Trainer(Model(SPIKED).double(), batches.at, recipe(rate=1e-2))
    for step in range(calm):
        first.learn(batches.at(step))
    return tuple(_through_fault(first, anticipation, after, fault, factor) for anticipation in (None, Anticipation(4)))


def small_batches(seed):
    """Generated programs in rows of 24 tokens, four a batch."""
    sources = [program.source for program in programs(seed=0, n=200)]
    tokenizer = Tokenizer.train(sources, vocab_size=300)
    return Batches(tokenizer.encode_all(sources), batch_size=4, length=24, seed=seed)


def _through_fault(first, anticipation, after, fault, factor):
    """The losses of `provoked_spike` from a copy of a trainer on."""
    trainer = Trainer(copy.deepcopy(first.model), first.batch_at, first.recipe)
    trainer.load_state_dict(copy.deepcopy(first.state_dict()))
    trainer.anticipation, probe, losses = anticipation, first.batch_at(1 << 20), []
    for step in range(after + 1):
        with torch.no_grad():
            losses.append(trainer.model.loss(probe).main.item())
        rate = first.recipe.rate * (factor if step < fault else 1)
        trainer.recipe = dataclasses.replace(first.recipe, rate=rate)
        trainer.learn(first.batch_at(trainer.step))
    return losses


SPIKED = Config.tiny().replace(
    **dict(vocab_size=300, num_hidden_layers=2, compress_ratios=(0, 0, 0), num_hash_layers=0, swiglu_limit=10.0),
    **dict(num_nextn_predict_layers=0, hc_sinkhorn_iters=6),
)


def picks_in_4_bits():
    """Notebook 03: how many of the right picks an indexer with MXFP4 keys finds, by loudness of 4 of 128 channels."""
    loud = (1, 2, 4, 8, 16, 32)
    found = [[[*_found_in_4_bits(factor, seed)] for seed in range(3)] for factor in loud]
    return plots.recall_in_4_bits(loud, np.array(found))


class Round(NamedTuple):
    """A pass of the model that checked drafts: certain tokens, of them not yet read, drafts, drafts kept."""

    end: int
    pending: int
    depth: int
    kept: int


def draft_rounds(model, ids, depth, n_rounds):
    """Notebook 08: what happens in greedy drafting after a prompt, round by round, and the Speculation with its counts.

    ids  token ids of the prompt, a list
    """
    counts, rounds = Speculation(depth), []
    writer = Speculator(model, counts, 0.0, 1.0, torch.Generator())
    end = len(ids) + len([writer.begin(torch.tensor(ids))])
    for _ in range(n_rounds):
        pending = writer.state.pending_BT.shape[1]
        pending = 1 if pending > MAX_PENDING else pending  # a pass of their own came before
        kept = len(writer.round()) - 1
        rounds.append(Round(end, pending, depth, kept))
        end += kept + 1
    return rounds, counts


@torch.no_grad()
def quiet_model(loud=0.2):
    """A random model whose layers say little: next tokens follow from the last one mostly, and the MTP block knows."""
    torch.manual_seed(0)
    model = Model(Config.tiny().replace(vocab_size=17)).double()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            soft = loud if name.endswith(("wo_b.weight", "w2", "w2.weight", "h_proj.weight")) else 1
            torch.nn.init.normal_(parameter, std=soft * parameter.shape[-1] ** -0.5)
    torch.nn.init.normal_(model.embed.weight)
    model.mtp[0].e_proj.weight.copy_(torch.eye(24))
    model.mtp[0].hc_head.load_state_dict(model.hc_head.state_dict())
    return model


def drafting():
    """Notebook 08: passes of a small random model that drafts, and tokens a round by the share of drafts kept."""
    model, gains = quiet_model(), {}
    for depth in (1, 2, 4):
        rounds, counts = draft_rounds(model, [5, 5, 1], depth, 40)
        gains[depth] = counts.kept[0] / counts.rounds, 1 + counts.accepted / counts.rounds
    return plots.drafting(rounds[:14], gains)


def _found_in_4_bits(loud, seed):
    """Shares of the exact best 32 of 256: FP4 keys with both sides turned, as they are, and one side turned unrounded.

    loud  how many times louder every 32nd channel of the keys is; in the queries it is as many times quieter
    """
    torch.manual_seed(seed)
    sizes, turn = ((1, 64, 8, 128), (1, 64, 8), (1, 256, 128)), Hadamard(128).double()
    query_BTUZ, weight_BTU, key_BSZ = (torch.randn(size, dtype=torch.float64) for size in sizes)
    query_BTUZ[..., ::32] /= loud
    key_BSZ[..., ::32] *= loud
    in_4_bits = rounding.Mxfp4().round
    pairs = ((query_BTUZ, key_BSZ), (turn(query_BTUZ), in_4_bits(turn(key_BSZ))), (query_BTUZ, in_4_bits(key_BSZ)))
    pairs = (*pairs, (turn(query_BTUZ), key_BSZ))
    exact, *others = (stable_topk(index_scores(query, weight_BTU.abs(), key), 32) for query, key in pairs)
    return ((picks[..., None] == exact[..., None, :]).any(-1).double().mean().item() for picks in others)


# Held-out losses after 0, 24, ... 240 steps of `race.learn(seed, kind, 240, every=24, rate=0.01)`, seeds 0 to 2: each
# kind's best rate at this length, of 0.005 to 0.014 for AdamW and of 0.01 and 0.02 for Muon, two seeds or more each.
LONG_RACE = {
    "AdamW": [
        [5.77, 2.74, 1.81, 1.33, 1.02, 0.87, 0.78, 0.67, 0.62, 0.56, 0.60],
        [5.77, 2.55, 1.65, 1.28, 1.04, 0.82, 0.73, 0.71, 0.71, 0.61, 0.59],
        [5.77, 2.60, 1.73, 1.36, 1.01, 0.91, 0.90, 0.75, 0.67, 0.61, 0.58],
    ],
    "Muon": [
        [5.77, 2.36, 1.39, 0.91, 0.76, 0.68, 0.66, 0.58, 0.51, 0.54, 0.51],
        [5.77, 2.35, 1.39, 0.97, 0.80, 0.65, 0.60, 0.63, 0.57, 0.53, 0.54],
        [5.77, 2.38, 1.38, 0.95, 0.73, 0.70, 0.75, 0.65, 0.58, 0.49, 0.48],
    ],
}


def muon():
    """Notebook 09: singular values through the ten steps, and a race of Muon and AdamW."""
    figure = Figure(figsize=(6.0, 3.0))
    left, right = figure.subplots(1, 2)
    plots.newton_schulz(left, newton_schulz_paths())
    curves = {kind: np.array(losses) for kind, losses in LONG_RACE.items()}
    plots.race(right, curves, every=24)
    right.set_title("Held-out loss, three seeds", fontweight="normal")
    figure.suptitle("Muon makes all singular values 1, and learns in 3/4 of AdamW's steps", **HEADING)
    return figure


def newton_schulz_paths():
    """Seven singular values from 0.001 to 1 through the steps of eq. (28), numpy array (steps + 1, 7)."""
    paths = [np.logspace(-3, 0, 7)]
    for a, b, c in SCHEDULE:
        paths.append(a * paths[-1] + b * paths[-1] ** 3 + c * paths[-1] ** 5)
    return np.array(paths)


def schedules(n_waves=3):
    """Notebook 13: the report's figure 5, simulated with Flash's shapes and the data sheet of B200.

    n_waves  of the last panel
    """
    part = schedule.stages(Config.flash(), DEVICES["B200"])
    timelines = {
        "One stage after the other": schedule.naive(part),
        "Comet: two pairs overlap": schedule.comet(part),
        f"V4: {n_waves} waves of experts": schedule.waves(part, n_waves),
    }
    gains = [part.serial / timeline.time for timeline in timelines.values()]
    reported = ("", ", report 1.42", ", report 1.92" if n_waves == 3 else "")
    words = {name: f"{gain:.2f}x{said}" for name, gain, said in zip(timelines, gains, reported)}
    lanes = {lane: f"{lane}, {schedule.LANES[lane]}" for lane in ("link", "matrix", "vector")}
    title = "Waves keep the link busy from first to last, so nothing else is waited for"
    return plots.gantt(timelines, lanes, part.products, title, words)


# Notebook 13: seconds of a layer by waves, from 20 rounds of 4 ranks paced to 0.15 s of products and rho = 1. Measured
# once over gloo, on 2 cores that ten other programs used as well; 0.15 (1 + 1/W) would be exact.
PACED = {
    "fastest": {1: 0.3202, 2: 0.2522, 3: 0.2169, 4: 0.2050, 6: 0.1968, 12: 0.1941},
    "median": {1: 0.3802, 2: 0.3031, 3: 0.2568, 4: 0.2820, 6: 0.2666, 12: 0.3145},
}


def cost_curves():
    """README: what a text of a thousand to a million tokens costs; measured by `bench --curve`, kept in assets/."""
    return plots.bench_curves([Point(**point) for point in json.loads(CURVES.read_text(encoding="utf-8"))["points"]])


def overlap_by_ratio():
    """Notebook 13: what overlap is worth by rho, with Flash on six chips; and C/B of these chips."""
    rho, names = np.geomspace(0.1, 4.5, 181), ("H20", "Ascend 950DT", "Ascend 910C", "H200", "B200", "H800")
    parts = {name: schedule.stages(Config.flash(), DEVICES[name]) for name in names}
    curves = {
        "perfect overlap": (rho, schedule.ideal_speedup(rho)),
        "Comet at best": (rho, schedule.comet_speedup(rho)),
        "serial": (rho, np.ones_like(rho)),
    }
    chips = {name: (part.rho, part.serial / schedule.waves(part, 8).time) for name, part in parts.items()}
    ratios = {name: DEVICES[name].peak(8) / DEVICES[name].link for name in names}
    bounds = {
        name: schedule.balance_point(config) for name, config in (("Flash", Config.flash()), ("Pro", Config.pro()))
    }
    return plots.overlap_by_ratio(curves, chips, ratios, bounds)


def gain_by_batch():
    """Notebook 13: the speed-ups of DeepGEMM's table, taken apart by the model of minidsv4/cost/megamoe.py."""
    models = {"Flash": ("flash", megamoe.FLASH), "Pro": ("pro", megamoe.PRO)}
    published = {
        model: {row.n_tokens: row.speedup for row in megamoe.DEEPGEMM if row.model == name}
        for model, (name, _) in models.items()
    }
    gains = {
        model: {n_tokens: megamoe.gain(config, n_tokens, megamoe.B200) for n_tokens in published[model]}
        for model, (_, config) in models.items()
    }
    return plots.gain_by_batch(gains, published)


FOLDER = Path(__file__).resolve().parents[2] / "figures"
CURVES = Path(__file__).resolve().parents[1] / "assets" / "curves.json"


def cut_row(lengths=(10, 7, 7), window=4, ratios=(4, 8)):
    """Notebook 14: 24 tokens on three ranks, and what crosses the borders in a window, a CSA and an HCA layer."""
    starts, edges = list(itertools.accumulate(lengths))[:-1], [0, *itertools.accumulate(lengths)]
    overlap, plain = ratios
    fetched = {
        f"window of {window}": [(rank, 0, context.window_reach(start, window)) for rank, start in enumerate(starts, 1)],
        f"CSA, m = {overlap}": [
            (rank, context.raw_reach(start, overlap, 2) - start % overlap, start % overlap)
            for rank, start in enumerate(starts, 1)
        ],
        f"HCA, m' = {plain}": [(rank, 0, context.raw_reach(start, plain, 1)) for rank, start in enumerate(starts, 1)],
    }
    return plots.cut_row(edges, dict(zip([*fetched][1:], ratios)), fetched)


FIGURES = {
    "00_map_of_the_model": plots.map_of_model,
    "01_attention": moved_text,
    "02_compression": pooled_tokens,
    "03_indexer": picks_in_4_bits,
    "04_who_sees_what": masks,
    "05_cache": cache_while_decoding,
    "05_cost_curves": cost_curves,
    "06_streams": streams_through_depth,
    "07_experts": bias_rule,
    "08_mtp": drafting,
    "10_training": recipe_over_steps,
    "09_muon": muon,
    "10_recall": planted_recall,
    "12_the_bill": flops_and_cache,
    "13_expert_parallelism": schedules,
    "14_context_parallelism": cut_row,
}
TOLERANCE = 0.02  # points: a fiftieth of a line's width
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


def draw(name):
    """The figure called name as the text of an SVG file."""
    plots.use_style()
    stream = io.StringIO()
    FIGURES[name]().savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def difference(stored, drawn):
    """What tells two SVG texts apart, in a sentence; None where the text agrees and the numbers do to 0.02 pt."""
    if NUMBER.sub("#", stored) != NUMBER.sub("#", drawn):
        return "the text differs"
    pairs = zip(NUMBER.findall(stored), NUMBER.findall(drawn), strict=True)
    largest = max((abs(float(first) - float(second)) for first, second in pairs), default=0.0)
    return f"a number differs by {largest:.3g} pt" if largest > TOLERANCE else None


def main(words=None):
    """Draw every figure, or compare them with the files; the exit status is 1 where one differs."""
    parser = argparse.ArgumentParser(prog="python -m minidsv4.course.figures", description="Draw the figures.")
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    check = parser.parse_args(words).check
    status = 0
    FOLDER.mkdir(exist_ok=True)
    for name in FIGURES:
        path = FOLDER / f"{name}.svg"
        drawn = draw(name)
        if not check:
            path.write_text(drawn, encoding="utf-8")
            continue
        found = difference(path.read_text(encoding="utf-8"), drawn) if path.exists() else "the file is missing"
        print(f"{name}: {found or 'as drawn'}")
        status = status or int(found is not None)
    return status


if __name__ == "__main__":
    sys.exit(main())
