"""The small V4 of the needle: learnt on planted facts at short length, kept in the package's assets.

    python -m minidsv4.experiments.needle_recipe  learn it anew and replace the kept one

Three layers, a window, CSA and HCA, with everything of V4: indexer, hyper-connections, experts by a table and by a
router. It learns only to answer, on texts of 64 to 512 tokens, and at the end of 4,096 and 8,192: without these it
picked the right entries among 65,536, but core attention told them less well from the other picks.
Two choices make it learn at all, and fast. Embeddings begin with a standard deviation of 1: at 0.08 what the layers add
drowns them, and keys are never matched. Matching is found on 16 keys in 200 steps, and then holds for all 64.
"""

import argparse
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.checkpoint import load, save
from minidsv4.config import Config
from minidsv4.experiments import facts
from minidsv4.fast.pages import kept_pages
from minidsv4.model.indexer import Indexer
from minidsv4.model.layer import watch
from minidsv4.model.losses import index_calls, indexer_loss
from minidsv4.model.model import Model
from minidsv4.train import indexer
from minidsv4.train.balance import balanced
from minidsv4.train.log import Log
from minidsv4.train.muon import muon

ASSETS = Path(__file__).resolve().parents[1] / "assets"
FOLDER = ASSETS / "needle"  # its log lies beside it
RATE, EMBEDDING_RATE = 2e-2, 6e-3  # of Muon's matrices, and of what AdamW moves
BALANCE_SPEED = 3e-3
WARM_STEPS = 20  # of each stage, up to its rate


class Stage(NamedTuple):
    """Steps on texts of one shape: so many texts of so many tokens, with so many facts about the first keys.

    first, last  shares of the full rate, between which it moves along a line
    """

    steps: int
    n: int
    length: int
    n_facts: int
    n_keys: int = facts.KEYS
    first: float = 1.0
    last: float = 1.0

    def share(self, step: int) -> float:
        """The share of the full rate at a step, from 0; the first steps warm up."""
        return min(1.0, (step + 1) / WARM_STEPS) * (self.first + (self.last - self.first) * step / self.steps)


DENSE = (
    Stage(240, 24, 64, 3, n_keys=16),
    Stage(120, 24, 64, 3),
    Stage(120, 12, 128, 8),
    Stage(100, 6, 256, 16, first=0.7, last=0.1),
)
WARM_UP = Stage(60, 12, 256, 16)
SPARSE = (
    Stage(100, 6, 512, 32, first=0.3, last=0.02),
    Stage(60, 1, 4096, 32, first=0.3, last=0.1),
    Stage(40, 1, 8192, 32, first=0.2, last=0.01),
)


def small(ratios: tuple[int, ...] = (0, 4, 128)) -> Config:
    """Three layers of 48 channels, some 370 thousand parameters: window, CSA, HCA."""
    return Config.mini().replace(
        **dict(vocab_size=facts.VOCABULARY, hidden_size=48, moe_intermediate_size=32, num_hidden_layers=len(ratios)),
        **dict(num_attention_heads=4, head_dim=32, qk_rope_head_dim=8, q_lora_rank=32, o_groups=2, o_lora_rank=32),
        **dict(sliding_window=16, compress_ratios=(*ratios, 0), index_n_heads=4, index_head_dim=16, index_topk=8),
        **dict(n_routed_experts=4, num_hash_layers=1, num_nextn_predict_layers=0, hc_sinkhorn_iters=3),
        **dict(rope_theta=100.0, compress_rope_theta=16.0, rope_scaling=None, max_position_embeddings=2**21),
        initializer_range=0.08,
    )


def new_model(seed: int, config: Config | None = None) -> Model:
    """An untrained model of this seed, with embeddings of standard deviation 1."""
    torch.manual_seed(seed)
    model = Model(config or small())
    nn.init.normal_(model.embed.weight)
    return model


def answers(model: Model, batch: facts.Lesson) -> Tensor:
    """Logits at the questions of each text, [texts, questions, V]."""
    streams_BTND = model.streams(batch.ids_BT, model.new_cache(len(batch.ids_BT)))
    return model.logits(streams_BTND[torch.arange(len(batch.ids_BT))[:, None], batch.asked])


def learn(model: Model, source: Tensor, stage: Stage, seed: int, after: Callable[[dict], None]) -> None:
    """The steps of a stage, by Muon.

    after  called after each step with what there is to log of it
    """
    optimizer = muon(model, RATE, decay=0.01)
    for step in range(stage.steps):
        batch = facts.lesson(source, *stage[1:4], 1_000_000 * (seed + 1) + step, stage.n_keys)
        share = stage.share(step)
        for group in optimizer.param_groups:
            group["lr"] = share * (RATE if group["parts"] else EMBEDDING_RATE)
        with balanced(model, BALANCE_SPEED), watch(model, Indexer, "attend") as calls:
            logits = answers(model, batch)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.value.flatten())
            own = loss.new_zeros(()) + sum(map(indexer_loss, index_calls(calls)))
            optimizer.zero_grad()
            (loss + own).backward()
            indexer.clip_apart(model, 1.0)
            optimizer.step()
        right = (logits.argmax(-1) == batch.value).double().mean()
        after({"loss": loss.item(), "right": right.item(), "indexer": own.item(), "rate": RATE * share})


def run(seed: int, source: Tensor, after: Callable[[dict], None] = lambda record: None) -> Model:
    """A model that has learnt to answer: densely first, then its indexers alone, then with their picks."""
    model = new_model(seed)
    with indexer.dense_attention(model), indexer.freeze_indexers(model):
        for number, stage in enumerate(DENSE):
            learn(model, source, stage, seed + 10 * number, after)

    def batch_at(step: int) -> Tensor:
        return facts.lesson(source, *WARM_UP[1:4], 1_000_000 * (seed + 51) + step).ids_BT

    if any(isinstance(module, Indexer) for module in model.modules()):
        for loss in indexer.warm_up(model, batch_at, WARM_UP.steps, rate=1e-2):
            after({"indexer": loss})
    for number, stage in enumerate(SPARSE):
        learn(model, source, stage, seed + 101 + 100 * number, after)
    return model


def load_needle(folder: str | Path = FOLDER) -> Model:
    """The small V4 that the package ships for needles, or another one of its vocabulary, in float32.

    raises  ValueError where there is none, or one with another vocabulary
    """
    model = load(folder)
    if model.config.vocab_size != facts.VOCABULARY:
        raise ValueError(
            f"needle: vocab_size = {model.config.vocab_size} of {folder} cannot be asked; the facts need "
            f"{facts.VOCABULARY} ids, as `python -m minidsv4.experiments.needle_recipe` trains"
        )
    return model


def main() -> None:
    """Learn the model, with its log, and keep it."""
    parser = argparse.ArgumentParser(prog="python -m minidsv4.experiments.needle_recipe", description="Learn needles.")
    parser.add_argument("--seed", type=int, default=0, help="of weights and texts")
    parser.add_argument("--out", default=str(FOLDER), help="folder of the model; its log lies beside it")
    arguments = parser.parse_args()
    folder = Path(arguments.out)
    torch.set_num_threads(1)
    log = Log(folder.with_name(f"{folder.name}.log.jsonl"), after=0)
    began, step = time.perf_counter(), count(1)
    with kept_pages():
        source = facts.source_ids()

        def after(record: dict) -> None:
            log.write({"step": next(step), "seconds": round(time.perf_counter() - began, 2)} | record)

        model = run(arguments.seed, source, after)
    save(model, folder)


if __name__ == "__main__":
    main()
