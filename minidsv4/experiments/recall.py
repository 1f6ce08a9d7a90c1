"""Planted recall: facts lie scattered in noise, questions stand at the end; how far back is an answer found?

    python -m minidsv4.experiments.recall  learn and measure for 3 seeds, keep it in assets/ (5 CPU minutes)

B batch, T tokens. A fact is one token that holds a key and a value, a question one token that holds a key, and the
token after it is the value. Models learn at one length and answer at four times that, with as many facts in more
noise. They are small, and so is the task: it shows what a layer can reach, and nothing about language.
"""

import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4.config import Config
from minidsv4.model.indexer import Indexer
from minidsv4.model.layer import watch
from minidsv4.model.losses import index_calls, indexer_loss
from minidsv4.model.model import Model
from minidsv4.train import indexer
from minidsv4.train.muon import muon

KEYS, VALUES, NOISE, N_FACTS = 8, 4, 8, 6
ASK, ANSWER, FILL = KEYS * VALUES, KEYS * VALUES + KEYS, KEYS * VALUES + KEYS + VALUES  # first ids of each kind
LENGTH, LONGER = 64, 256  # tokens: learnt at, asked at
SEEDS = 3
EDGES = (1, 8, 16, 32, 64, 128, 256)  # of the bins of distances
FILE = Path(__file__).resolve().parents[1] / "assets" / "recall.json"


class Texts(NamedTuple):
    """Texts that ask for all their facts at their end, each question followed by its answer."""

    ids_BT: Tensor
    asked: Tensor  # positions of the questions, the same in every text
    distance: Tensor  # tokens from each question back to its fact: one row a text, one column a question


def texts(n: int, length: int, seed: int) -> Texts:
    """`n` texts with 6 facts about different keys in noise, then 6 questions in another order."""
    generator = torch.Generator().manual_seed(seed)

    def shuffled(width: int) -> Tensor:
        return torch.rand(n, width, generator=generator).argsort(1)[:, :N_FACTS]

    body = length - 2 * N_FACTS
    ids_BT = FILL + torch.randint(NOISE, (n, length), generator=generator)
    place, key, order = shuffled(body), shuffled(KEYS), shuffled(N_FACTS)
    value = torch.randint(VALUES, (n, N_FACTS), generator=generator)
    ids_BT.scatter_(1, place, key * VALUES + value)
    asked = body + 2 * torch.arange(N_FACTS)
    ids_BT[:, asked] = ASK + key.gather(1, order)
    ids_BT[:, asked + 1] = ANSWER + value.gather(1, order)
    return Texts(ids_BT, asked, asked - place.gather(1, order))


def small(kind: str) -> Config:
    """Three layers of about 200 thousand parameters: window, CSA, HCA for "V4"; windows only for "window"."""
    ratios = {"V4": (0, 4, 16, 0), "window": (0, 0, 0, 0)}[kind]
    return Config.mini().replace(
        **dict(vocab_size=FILL + NOISE, hidden_size=64, moe_intermediate_size=32, num_hidden_layers=3, head_dim=32),
        **dict(num_attention_heads=4, qk_rope_head_dim=8, q_lora_rank=32, o_groups=2, o_lora_rank=32),
        **dict(sliding_window=8, compress_ratios=ratios, index_n_heads=8, index_head_dim=16, index_topk=4),
        **dict(n_routed_experts=4, num_hash_layers=1, num_nextn_predict_layers=0, hc_sinkhorn_iters=5),
        initializer_range=0.08,
    )


def answers(model: Model, batch: Texts) -> Tensor:
    """Logits at the questions."""
    return model.logits(model.streams(batch.ids_BT[:, :-1], model.new_cache(len(batch.ids_BT)))[:, batch.asked])


def learn(model: Model, n_steps: int, seed: int, rate: float = 2e-2, n: int = 32) -> None:
    """Learn to answer, by Muon with a rate that falls linearly to a tenth; indexers learn unless they are frozen."""
    optimizer = muon(model, rate, decay=0.01)
    for step in range(n_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / n_steps)
        batch = texts(n, LENGTH, seed=1_000_000 * (seed + 1) + step)
        with watch(model, Indexer, "attend") as calls:
            logits = answers(model, batch)
        wanted = batch.ids_BT[:, batch.asked + 1]
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        (loss + sum(map(indexer_loss, index_calls(calls)))).backward()
        indexer.clip_apart(model, 1.0)
        optimizer.step()


@torch.no_grad()
def by_distance(model: Model, length: int, n: int = 400, edges: Sequence[int] = EDGES) -> list[float]:
    """The share of right answers to questions whose fact lies so many tokens back, bin by bin."""
    right, distance = [], []
    for seed in range(n // 50):
        batch = texts(50, length, seed)
        right.append(answers(model, batch).argmax(-1) == batch.ids_BT[:, batch.asked + 1])
        distance.append(batch.distance)
    right, bins = torch.cat(right), torch.bucketize(torch.cat(distance), torch.tensor(edges), right=True)
    return [right[bins == number].double().mean().item() for number in range(1, len(edges))]


def found(model: Model) -> dict[str, dict[str, float]]:
    """At both lengths: what share of the attention on entries each choice of 4 catches, in the CSA layer."""
    out = {}
    for length in (LENGTH, LONGER):
        (layer,) = indexer.recall(model, texts(50, length, seed=0).ids_BT)
        out[str(length)] = {name: caught.mass for name, caught in layer.items()}
    return out


def run(seed: int, n_dense: int = 140, n_warm_up: int = 40, n_sparse: int = 40) -> dict[str, dict]:
    """One seed of everything: a V4 that reads all entries, its indexer fresh and taught, and windows only.

    returns  {"answers": {model: `by_distance` at the longer length}, "recall": {stage: `found`}}
    """
    torch.manual_seed(seed)
    models = {"taught": Model(small("V4")), "window": Model(small("window"))}
    learn(models["window"], n_dense + n_sparse, seed)
    with indexer.dense_attention(models["taught"]), indexer.freeze_indexers(models["taught"]):
        learn(models["taught"], n_dense, seed)
        answered = {"dense": by_distance(models["taught"], LONGER)}
    models["untaught"] = copy.deepcopy(models["taught"])
    caught = {"before the warm-up": found(models["taught"])}
    warm_up_at = functools.partial(_warm_up_batch, seed)
    indexer.warm_up(models["taught"], warm_up_at, n_warm_up, rate=1e-2)
    caught["after the warm-up"] = found(models["taught"])
    learn(models["taught"], n_sparse, seed + 100, rate=4e-3)
    with indexer.freeze_indexers(models["untaught"]):
        learn(models["untaught"], n_sparse, seed + 100, rate=4e-3)
    answered |= {name: by_distance(model, LONGER) for name, model in models.items()}
    caught |= {f"at the end, {name}": found(models[name]) for name in ("taught", "untaught")}
    return {"answers": answered, "recall": caught}


def _warm_up_batch(seed: int, step: int) -> Tensor:
    return texts(32, LENGTH, seed=1_000_000 * (seed + 50) + step).ids_BT


def measured() -> list[dict]:
    """What `python -m minidsv4.experiments.recall` wrote: `run` of each seed."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def main() -> None:
    """Run every seed and keep what they gave, to three digits."""
    torch.set_num_threads(1)
    runs = []
    for seed in range(SEEDS):
        runs.append(json.loads(json.dumps(run(seed)), parse_float=lambda digits: round(float(digits), 3)))
        print(f"seed {seed}: {json.dumps(runs[-1]['answers'])}", flush=True)
    FILE.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
