"""An experiment: a hash layer and a learned layer of experts learn a toy language, with and without the bias rule.

After token v comes a fixed partner half of the time, otherwise a fresh token. Fresh tokens follow Zipf's law: the r-th
commonest occurs 1/r as often as the first. B batch, T tokens, D width, E experts, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.config import Config, Routing
from minidsv4.model.layer import watch
from minidsv4.model.moe import MoE, Router
from minidsv4.train import balance

N_TOKENS = 64  # of the toy's vocabulary
WIDTH = 16
SIZES = {"vocab_size": N_TOKENS, "hidden_size": WIDTH, "n_routed_experts": 8, "moe_intermediate_size": 16}
CONFIG = Config.tiny().replace(swiglu_limit=10.0, **SIZES)


class Toy(nn.Module):
    """Embedding, a hash layer and a learned layer of experts as residual layers, and the embedding as head."""

    def __init__(self, seed: int):
        super().__init__()
        self.embed = nn.Embedding(N_TOKENS, WIDTH)
        self.layers = nn.ModuleList(MoE(CONFIG, routing) for routing in (Routing.HASH, Routing.LEARNED))
        self.layers[0].gate.draw(seed)
        self.double()
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.25, generator=generator)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits of the next token [B, T, V]."""
        x_BTD = self.embed(ids_BT)
        for layer in self.layers:
            x_BTD = x_BTD + layer(F.rms_norm(x_BTD, (WIDTH,)), ids_BT)
        return x_BTD @ self.embed.weight.T


class ToyRun(NamedTuple):
    """The loads of both layers after each step [steps, 2, E], and the loss of each step."""

    loads: Tensor
    losses: list[float]


def batch(step: int, seed: int = 0, n_tokens: int = 256) -> tuple[Tensor, Tensor]:
    """Tokens and the tokens that follow them, both [1, T]; the partners are the same for every seed."""
    partner_V = torch.randperm(N_TOKENS, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1000 * seed + step)
    zipf_V = 1 / torch.arange(1, N_TOKENS + 1, dtype=torch.float64)
    ids_T = torch.multinomial(zipf_V, n_tokens, replacement=True, generator=generator)
    keep_T = torch.rand(n_tokens, dtype=torch.float64, generator=generator) < 0.5
    return ids_T[None], torch.where(keep_T, partner_V[ids_T], ids_T.roll(-1))[None]


def train_toy(seed: int, speed: float, n_steps: int = 120) -> ToyRun:
    """Train a toy by Adam, its learned router balanced with this speed; 0 leaves the bias.

    The seed draws weights, table and text.
    """
    toy = Toy(seed)
    optimizer = torch.optim.Adam(toy.parameters(), lr=5e-3)
    loads, losses = [], []
    for step in range(n_steps):
        ids_BT, target_BT = batch(step, seed)
        with balance.balanced(toy, speed), watch(toy, Router) as calls:
            loss = F.cross_entropy(toy(ids_BT)[0], target_BT[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loads.append(torch.stack(list(balance.loads(calls).values())))
        losses.append(loss.item())
    return ToyRun(torch.stack(loads), losses)


def overload(loads: Tensor, every: int) -> list[list[float]]:
    """MaxVio of both layers, so many steps pooled: a list of pairs from loads [steps, 2, E]."""
    pooled = [part.sum(0) for part in loads.split(every)]
    return [[balance.max_violation(load_E) for load_E in part] for part in pooled]
