"""The figures of figures/, drawn from the package: files for documents that cannot run a cell.

    python -m minidsv4.course.figures          draw them all
    python -m minidsv4.course.figures --check  say which file differs from what is drawn now

Letters are drawn as paths and no date is kept, so the same matplotlib writes the same text; another machine's last
digit may differ, which is why numbers are compared to 0.02 pt.
"""

import argparse
import functools
import io
import re
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from minidsv4.config import Config, LayerKind
from minidsv4.course import plots
from minidsv4.course.figures_of_cost import PACED as PACED
from minidsv4.course.figures_of_cost import cost_curves, cut_row, flops_and_cache, schedules
from minidsv4.course.figures_of_cost import gain_by_batch as gain_by_batch
from minidsv4.course.figures_of_cost import overlap_by_ratio as overlap_by_ratio
from minidsv4.course.figures_of_cost import rows_by_ranks as rows_by_ranks
from minidsv4.course.plots import HEADING
from minidsv4.course.record import record
from minidsv4.experiments import recall
from minidsv4.experiments.drafts import draft_rounds, quiet_model
from minidsv4.experiments.race import LONG_RACE
from minidsv4.experiments.streams import depth_flows
from minidsv4.lowbit import rounding
from minidsv4.model.indexer import Hadamard
from minidsv4.model.layer import watch
from minidsv4.model.model import Model
from minidsv4.model.moe import LearnedRouter
from minidsv4.ops import index_scores, rotate, stable_topk
from minidsv4.train import balance
from minidsv4.train.muon import SCHEDULE
from minidsv4.train.plan import Plan


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


def loud_csa_layer():
    """Notebook 03: a random model in float64, one CSA layer whose entries are three times as loud as usual."""
    sizes = dict(num_hidden_layers=1, num_hash_layers=1, compress_ratios=(4, 0), vocab_size=40, sliding_window=4)
    heads = dict(num_attention_heads=2, o_groups=2, index_n_heads=8, index_head_dim=32, index_topk=4)
    torch.manual_seed(0)
    model = Model(Config.tiny().replace(**sizes, **heads)).double()
    model.layers[0].attn.compressor.norm.weight.data *= 3
    return model


def masks():
    """Notebook 04: the masks of a window, a CSA and an HCA layer."""
    model, ids = small_hybrid()
    with record(model) as rec:
        model(ids)
    return plots.masks([rec[layer] for layer in range(3)])


def cache_while_decoding():
    """Notebook 05: what a small model's cache holds after each of 32 tokens."""
    model, ids = small_hybrid()
    cache, reports = model.new_cache(), []
    for token in ids.split(1, dim=1):
        model(token, cache=cache)
        reports.append(cache.report())
    return plots.cache_growth(reports)


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


def bias_rule(speed=0.01):
    """Notebook 07: MaxVio of a skewed stream without and with the bias rule, and the biases."""
    (plain, _), (ruled, bias_TE) = skewed_stream(0.0), skewed_stream(speed)
    without, with_rule = ([balance.max_violation(load) for load in loads] for loads in (plain, ruled))
    return plots.bias_rule(without, with_rule, bias_TE.numpy(), speed)


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


def picks_in_4_bits():
    """Notebook 03: how many of the right picks an indexer with MXFP4 keys finds, by loudness of 4 of 128 channels."""
    loud = (1, 2, 4, 8, 16, 32)
    found = [[found_in_4_bits(factor, seed) for seed in range(3)] for factor in loud]
    return plots.recall_in_4_bits(loud, np.array(found))


def drafting():
    """Notebook 08: passes of a small random model that drafts, and tokens a round by the share of drafts kept."""
    model, gains = quiet_model(), {}
    for depth in (1, 2, 4):
        rounds, counts = draft_rounds(model, [5, 5, 1], depth, 40)
        gains[depth] = counts.kept[0] / counts.rounds, 1 + counts.accepted / counts.rounds
    return plots.drafting(rounds[:14], gains)


def found_in_4_bits(loud, seed):
    """Shares of the exact best 32 of 256: FP4 keys with both sides turned, as they are, and one side turned unrounded.

    loud  how many times louder every 32nd channel of the keys is; in the queries it is as many times quieter
    """
    torch.manual_seed(seed)
    query_BTUZ = torch.randn(1, 64, 8, 128, dtype=torch.float64)
    weight_BTU = torch.randn(1, 64, 8, dtype=torch.float64).abs()
    key_BCZ = torch.randn(1, 256, 128, dtype=torch.float64)
    query_BTUZ[..., ::32] /= loud
    key_BCZ[..., ::32] *= loud
    turn = Hadamard(128).double()
    in_4_bits = rounding.Mxfp4().round
    exact_BTP = stable_topk(index_scores(query_BTUZ, weight_BTU, key_BCZ), 32)
    found = []
    for query, key in (
        (turn(query_BTUZ), in_4_bits(turn(key_BCZ))),
        (query_BTUZ, in_4_bits(key_BCZ)),
        (turn(query_BTUZ), key_BCZ),
    ):
        picks_BTP = stable_topk(index_scores(query, weight_BTU, key), 32)
        same = picks_BTP[..., None] == exact_BTP[..., None, :]
        found.append(same.any(-1).double().mean().item())
    return found


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


FOLDER = Path(__file__).resolve().parents[2] / "figures"


FIGURES = {
    "00_map_of_the_model": plots.map_of_model,
    "01_attention": moved_text,
    "02_compression": plots.compressor_shapes,
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
