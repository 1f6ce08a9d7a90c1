"""Experiments: what fewer bits cost a trained model: bits per byte, logits, and the entries that its indexer picks.

    python -m minidsv4.experiments.precision  QAT beside rounding afterwards, 3 seeds, kept in assets/ (30 CPU minutes)

B batch, T tokens, U index heads, Z index width, C entries, P picked entries, V vocabulary. Report section 3.4.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from minidsv4.checkpoint import from_released
from minidsv4.checkpoint.loading import widened
from minidsv4.fast import FAST
from minidsv4.lowbit import mxfp4
from minidsv4.lowbit.activations import round_activations
from minidsv4.lowbit.qat import fp4_ops
from minidsv4.lowbit.released import as_released
from minidsv4.lowbit.rounding import FORMATS
from minidsv4.model.indexer import Hadamard
from minidsv4.model.layer import watch
from minidsv4.model.model import Model
from minidsv4.ops import PLAIN
from minidsv4.train.data import Batch
from minidsv4.train.loop import Trainer, bits_per_byte
from minidsv4.train.plan import Plan
from minidsv4.train.pretrain import Batcher, Texts
from minidsv4.train.recipe import Recipe
from minidsv4.train.ship import load_pretrained, pretrained_tokenizer
from minidsv4.train.tokenizer import Tokenizer

SEEDS = 3  # orders of the batches
WIDTHS = (4.25, 2.5)  # bits of an expert's weights: MXFP4, and a format in which rounding hurts
RECIPE = Recipe(steps=60, rate=7e-4, warm_up=5, optimizer="muon", balance_speed=0.003, mtp_weights=(0.1, 0.1))
ASSETS = Path(__file__).resolve().parents[1] / "assets"
FILE = ASSETS / "precision.json"
EXPERTS = ASSETS / "layer3_before_fp4.safetensors"

# ---- one model in several precisions ----


def experts_before_fp4() -> dict[str, Tensor]:
    """The routed experts of layer 3 as they were before the shipped model was trained for FP4.

    They are kept in FP8. Those of the shipped model are FP4 numbers, which rounding to MXFP4 leaves as they are.

    returns  "w13" [E, 2 F, D] and "w2" [E, D, F] in float32
    """
    stacks = from_released(widened(load_file(EXPERTS)))
    return {name.rpartition(".")[2]: stack for name, stack in stacks.items()}


def in_bf16(model: Model) -> Model:
    """A copy held in BF16, with the released islands of float32."""
    return copy.deepcopy(model).bfloat16()


def in_fp4(model: Model, bits: float = 4.25) -> Model:
    """A copy that reads its routed experts, index queries and keys in MXFP4: what QAT trains for.

    bits  of an expert's weights: MXFP4's 4.25, or another format of `rounding.FORMATS`
    """
    return copy.deepcopy(model).use(fp4_ops(FAST, FORMATS[bits].round))


def released(model: Model) -> Model:
    """A copy that computes as the released model does."""
    return as_released(copy.deepcopy(model))


PRECISIONS: dict[str, Callable[[Model], Model]] = {
    "fp32": copy.deepcopy,
    "bf16": in_bf16,
    "FP4 experts and indexer": in_fp4,
    "as released": released,
}


def bits_by_precision(model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """Bits per byte of some texts in each of `PRECISIONS`."""
    return {name: bits_per_byte(made(model), tokenizer, texts) for name, made in PRECISIONS.items()}


class LogitError(NamedTuple):
    """How far logits are off, over tokens: relative error, KL in bits a token, share of equal likeliest tokens."""

    relative: float
    bits: float
    same_best: float


@torch.inference_mode()
def logit_errors(model: Model, ids_BT: Tensor) -> dict[str, LogitError]:
    """What each rounding alone does to the logits of a text, and all together do."""
    exact = model(ids_BT)
    found = {name: logit_error(made(model)(ids_BT), exact) for name, made in PRECISIONS.items() if name != "fp32"}
    with round_activations(model):
        found["FP8 activations"] = logit_error(model(ids_BT), exact)
    packed = model.new_cache(len(ids_BT), precision="released")
    found["packed cache"] = logit_error(model(ids_BT, packed), exact)
    everything = released(model)
    packed = everything.new_cache(len(ids_BT), precision="released")
    return found | {"as released, packed cache": logit_error(everything(ids_BT, packed), exact)}


def logit_error(logits_BTV: Tensor, exact_BTV: Tensor) -> LogitError:
    """How far logits are from exact ones."""
    off = (logits_BTV - exact_BTV).norm() / exact_BTV.norm()
    wanted, found = exact_BTV.log_softmax(-1), logits_BTV.log_softmax(-1)
    nats = (wanted.exp() * (wanted - found)).sum(-1).mean()
    same = (logits_BTV.argmax(-1) == exact_BTV.argmax(-1)).double().mean()
    return LogitError(off.item(), nats.item() / math.log(2), same.item())


# ---- rounding afterwards beside training for it ----


def sparse_batches(plan: Plan, texts: Texts, tokenizer: Tokenizer, seed: int) -> Callable[[int], Batch | Tensor]:
    """Batches of a plan's last stage, in an order of their own for each seed."""
    last = Plan.from_dict(plan.fields | {"stages": plan.fields["stages"][-1:], "seed": 1000 + seed})
    return Batcher(last, texts, tokenizer).at


def trained_on(model: Model, batch_at: Callable[[int], Batch | Tensor], recipe: Recipe, bits: float | None) -> Model:
    """A copy that has learned for some steps more, with its experts read in so many bits; None: as they are.

    The copy runs FAST again: its weights are the masters, not rounded.
    """
    model = copy.deepcopy(model).use(FAST) if bits is None else in_fp4(model, bits)
    Trainer(model, batch_at, recipe).train()
    return model.use(FAST).eval()


def qat_beside_rounding(
    model: Model,
    tokenizer: Tokenizer,
    held_out: Mapping[str, Sequence[str]],
    batch_at: Callable[[int], Batch | Tensor],
    recipe: Recipe,
    bits: float = 4.25,
) -> dict[str, dict[str, float]]:
    """Bits per byte of held-out text, kind by kind, in full precision and in few bits: before and after training.

    The model that learned as many steps in full precision tells what is due to the steps and not to the rounding.

    bits     of an expert's weights; index queries and keys are MXFP4 wherever the experts are rounded
    returns  rows "float32", "rounded", "trained, float32", "trained, rounded", "QAT, rounded"
    """
    more, qat = (trained_on(model, batch_at, recipe, width) for width in (None, bits))
    rows = {"float32": model, "rounded": in_fp4(model, bits), "trained, float32": more}
    rows |= {"trained, rounded": in_fp4(more, bits), "QAT, rounded": in_fp4(qat, bits)}
    return {
        row: {kind: bits_per_byte(one, tokenizer, texts) for kind, texts in held_out.items()}
        for row, one in rows.items()
    }


def run(seed: int, bits: float) -> dict:
    """`qat_beside_rounding` of the shipped model with one order of batches, bits per byte to four decimals."""
    plan = Plan.read("mini")
    texts, tokenizer = Texts(plan), pretrained_tokenizer()
    batch_at = sparse_batches(plan, texts, tokenizer, seed)
    rows = qat_beside_rounding(load_pretrained(), tokenizer, texts.held_out, batch_at, RECIPE, bits)
    rounded = {row: {kind: round(value, 4) for kind, value in kinds.items()} for row, kinds in rows.items()}
    return {"seed": seed, "bits": bits, "bits per byte": rounded}


def measured() -> list[dict]:
    """What `python -m minidsv4.experiments.precision` wrote: a `run` for a width and a seed each.

    They started from the model that was shipped before, which had not been trained for FP4.
    """
    return json.loads(FILE.read_text(encoding="utf-8"))


def main() -> None:
    """Run all of them and keep them."""
    runs = [run(seed, bits) for bits in WIDTHS for seed in range(SEEDS)]
    FILE.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


# ---- the indexer's picks ----


class PickCall(NamedTuple):
    """One call of a CSA layer's choice, before the Hadamard matrix: what is chosen among, and how many."""

    query_BTUZ: Tensor
    weight_BTU: Tensor
    keys_BCZ: Tensor
    sees: object
    k: int


@torch.inference_mode()
def pick_calls(model: Model, ids_BT: Tensor) -> list[PickCall]:
    """What the CSA layers choose among when they read these tokens, with the Hadamard matrix taken away again."""
    with watch(model, "top_entries") as calls:
        model(ids_BT)
    undo = [layer.hadamard for layer, _, _ in calls]  # its own inverse
    inputs = [arguments for _, arguments, _ in calls]
    return [PickCall(turn(q), weight, turn(keys), sees, k) for turn, (q, weight, keys, sees, k) in zip(undo, inputs)]


def fp4_recall(call: PickCall, hadamard: bool) -> float:
    """The share of the picks of exact queries and keys that FP4 ones pick too, over queries that have to choose.

    hadamard  whether both are multiplied with the Hadamard matrix before they are rounded, as released
    raises    ValueError where no query has to choose
    """
    query_BTUZ, weight_BTU, keys_BCZ, sees, k = call
    choosing = sees.visible_counts() > k
    if not choosing.any():
        raise ValueError(f"fp4_recall: no query sees more than the {k} entries that it picks; give a longer text")
    turn = Hadamard(keys_BCZ.shape[-1]).to(keys_BCZ) if hadamard else torch.nn.Identity()
    rounded = [mxfp4.rounded(turn(x)) for x in (query_BTUZ, keys_BCZ)]
    exact_BTP = PLAIN.top_entries(query_BTUZ, weight_BTU, keys_BCZ, sees, k)[:, choosing]
    found_BTP = PLAIN.top_entries(rounded[0], weight_BTU, rounded[1], sees, k)[:, choosing]
    same = rearrange(exact_BTP, "b t p -> b t p 1") == rearrange(found_BTP, "b t p -> b t 1 p")
    return same.any(-1).double().mean().item()


def index_recall(model: Model, ids_BT: Tensor) -> list[dict[str, float]]:
    """For each CSA layer the part of its picks that is left in FP4, with and without the Hadamard matrix."""
    calls = pick_calls(model, ids_BT)
    return [{"Hadamard": fp4_recall(call, True), "none": fp4_recall(call, False)} for call in calls]


def with_outlier(call: PickCall, channel: int, times: float) -> PickCall:
    """The same choice where one channel of the keys is so many times larger, and that of the queries as much smaller.

    Every exact score is as before.
    """
    factor = torch.ones(call.keys_BCZ.shape[-1], dtype=call.keys_BCZ.dtype)
    factor[channel] = times
    return call._replace(query_BTUZ=call.query_BTUZ / factor, keys_BCZ=call.keys_BCZ * factor)


if __name__ == "__main__":
    main()
