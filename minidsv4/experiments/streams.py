"""What 64 layers do to signal and gradient through one residual, plain HC, and mHC; how alike trained streams are.

B batch, T tokens, N streams, D width; i old stream, j new stream. Report section 2.2; plain HC is that of
hyper-connections (Zhu et al. 2025). The model has mHC only; the other two sites live here, for comparison, and are
read from and written to by the model's own `collapse` and `write`.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.config import Config
from minidsv4.fast import FAST
from minidsv4.model.block import Block
from minidsv4.model.hyper_connection import GATE_AT_START, HyperConnection, Mix
from minidsv4.model.layer import watch
from minidsv4.model.model import Model

SITES_PER_LAYER = 2  # one around attention, one around the experts
EPS = 1e-6


class Residual(nn.Module):
    """`x + F(x)` as a site: one stream that is read, written and carried whole."""

    def forward(self, streams_BTND: Tensor) -> Mix:
        """The same mix for every token."""
        one_BTN = torch.ones_like(streams_BTND[..., 0])
        return Mix(one_BTN, one_BTN, one_BTN[..., None])


class PlainHyperConnection(nn.Module):
    """A site of plain HC: each map is `static + alpha tanh(theta RMSNorm(stream))`, and nothing bounds the mix.

    At the start stream `site mod N` is read, all are written, each is carried whole, and theta is 0.
    """

    def __init__(self, n_streams: int, width: int, site: int):
        super().__init__()
        self.streams = n_streams
        self.fn = nn.Parameter(torch.zeros(2 + n_streams, width))  # rows: pre, post, carry to each new stream
        start = F.one_hot(torch.tensor(site % n_streams), n_streams), torch.ones(n_streams), torch.eye(n_streams)
        self.base = nn.Parameter(torch.cat([part.flatten() for part in start]))  # packed like mHC's
        self.scale = nn.Parameter(torch.full((3,), GATE_AT_START))

    def forward(self, streams_BTND: Tensor) -> Mix:
        """The mix of each token; stream i alone says how it is read, written and carried on."""
        n = self.streams
        normed = F.rms_norm(streams_BTND, streams_BTND.shape[-1:], eps=EPS)
        pre, post, carry = F.linear(normed, self.fn).tanh().split([1, 1, n], dim=-1)
        base_pre, base_post, base_carry = self.base.split([n, n, n * n])
        base_carry = rearrange(base_carry, "(i j) -> i j", i=n)
        return Mix(
            base_pre + self.scale[0] * pre[..., 0],
            base_post + self.scale[1] * post[..., 0],
            base_carry + self.scale[2] * carry,
        )


class Stack(nn.Module):
    """Layers of two sites, each around a random linear map of its normed input, in float64.

    The maps are the same for every kind.

    kind    "residual", "HC" or "mHC"
    moved   how far training is pretended to have moved the biases of the sites: the standard deviation of noise on
            each raw number of read, write and mix, drawn alike for HC and mHC
    seed    of the maps and the noise
    raises  ValueError for another kind
    """

    def __init__(self, kind: str, n_layers: int, width: int, n_streams: int = 4, moved: float = 0.0, seed: int = 0):
        super().__init__()
        if kind not in ("residual", "HC", "mHC"):
            raise ValueError(f"stack: kind = {kind!r} is not known; it is 'residual', 'HC' or 'mHC'")
        n_sites, generator = SITES_PER_LAYER * n_layers, torch.Generator().manual_seed(seed)
        self.n_streams = 1 if kind == "residual" else n_streams
        self.sites = nn.ModuleList(_site(kind, n_streams, width, number) for number in range(n_sites)).double()
        # Each map adds 1 / n_sites to the mean square of a lone residual, which so doubles from entry to end.
        maps = torch.randn(n_sites, width, width, generator=generator, dtype=torch.float64)
        self.register_buffer("maps", maps / (width * n_sites) ** 0.5)
        noise = moved * torch.randn(n_sites, (2 + n_streams) * n_streams, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            for site, shift in zip(self.sites, noise):
                if hasattr(site, "base"):
                    site.base.add_(shift)

    def forward(self, x_BTD: Tensor) -> Iterator[tuple[Tensor, Mix | None]]:
        """The streams [B, T, N, D] at entry and after each site, with the mix that made them."""
        streams_BTND = repeat(x_BTD, "b t d -> b t n d", n=self.n_streams)
        yield streams_BTND, None
        for site, weight in zip(self.sites, self.maps):
            mix = site(streams_BTND)
            x_BTD = FAST.collapse(streams_BTND, mix.pre_BTN)
            y_BTD = FAST.rms_norm(x_BTD, None, EPS) @ weight.T
            streams_BTND = FAST.write(streams_BTND, y_BTD, mix.post_BTN, mix.carry_BTij)
            yield streams_BTND, mix


def _site(kind: str, n_streams: int, width: int, number: int) -> nn.Module:
    """A site at its initialisation; the released one needs a config, of which it reads the fields set here."""
    if kind == "residual":
        return Residual()
    if kind == "HC":
        return PlainHyperConnection(n_streams, width, number)
    site = HyperConnection(Config.tiny().replace(hc_mult=n_streams, hidden_size=width))
    nn.init.zeros_(site.fn)  # like HC's theta
    return site


class Flow(NamedTuple):
    """One number for the entry and one after each site.

    signal    root mean square of the streams
    gradient  root mean square of the gradient with respect to them, of a random linear loss at the end
    forward   gain of the composite mix: how much larger a new stream can be than the streams at entry
    backward  the same for gradients on their way to the entry
    """

    signal: Tensor
    gradient: Tensor
    forward: Tensor
    backward: Tensor


def flow(stack: Stack, x_BTD: Tensor, seed: int = 0) -> Flow:
    """Send tokens (float64) up and a gradient down a stack, and measure both at every depth."""
    passed, mixes = zip(*stack(x_BTD.detach().requires_grad_()))
    generator = torch.Generator().manual_seed(seed)
    towards_BTD = torch.randn(x_BTD.shape, generator=generator, dtype=torch.float64)
    loss = (passed[-1] * towards_BTD[:, :, None]).sum()
    gradients = torch.autograd.grad(loss, passed)
    signal, gradient = ([_rms(part) for part in parts] for parts in (passed, gradients))
    return Flow(torch.stack(signal), torch.stack(gradient), *composite_gains([mix.carry_BTij for mix in mixes[1:]]))


def _rms(x: Tensor) -> Tensor:
    return x.detach().square().mean().sqrt()


@torch.no_grad()
def composite_gains(carries: list[Tensor]) -> tuple[Tensor, Tensor]:
    """How much the product of the mixes up to each depth can enlarge a signal, and a gradient: 1 at entry.

    carries  mixes [B, T, old, new], the lowest first
    returns  (forward, backward): the largest sum of absolute weights into a new stream, and out of an old one; the
             largest over all tokens
    """
    n = carries[0].shape[-1]
    product = torch.eye(n, dtype=carries[0].dtype).expand_as(carries[0])
    products = [product := product @ carry for carry in [product, *carries]]
    return tuple(torch.stack([p.abs().sum(axis).max() for p in products]) for axis in (-2, -1))


@functools.cache
def depth_flows(moved=0.2, n_layers=64):
    """Notebook 06: {kind: Flow of each of 5 seeds} through random stacks whose sites moved by noise of that width."""
    x_BTD = torch.randn(1, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {
        kind: [flow(Stack(kind, n_layers, 16, moved=moved, seed=seed), x_BTD) for seed in range(5)]
        for kind in ("residual", "HC", "mHC")
    }


# --- streams and carries of a trained model ---


class Alike(NamedTuple):
    """How alike the streams of a model are, and how much its sites carry straight on; means over tokens.

    cosine_L  mean cosine between two different streams of a token, after each layer
    kept      mean share of a stream that comes from the same stream before, at each site
    """

    cosine_L: Tensor
    kept: Tensor


@torch.no_grad()
def alike(model: Model, ids_BT: Tensor) -> Alike:
    """Notebook 06: the Alike of a text."""
    with watch(model, Block, HyperConnection) as calls:
        model(ids_BT)
    cosine, kept = [], []
    for module, _, output in calls:
        if isinstance(module, HyperConnection):
            diagonal_BTN = output.carry_BTij.diagonal(dim1=-2, dim2=-1)
            kept.append(diagonal_BTN.mean())
        else:
            unit_BTND = F.normalize(output, dim=-1)
            cosines_BTij = einsum(unit_BTND, unit_BTND, "b t i d, b t j d -> b t i j")
            n = output.shape[2]
            cosine.append((cosines_BTij.sum((-2, -1)) - n).mean() / (n * (n - 1)))
    return Alike(torch.stack(cosine), torch.stack(kept))


@contextmanager
def changed_carries(model: Model, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, each site's carry [B, T, old, new] is what `change` makes of it."""

    def changed(_site: nn.Module, _inputs: tuple, mix: Mix) -> Mix:
        return mix._replace(carry_BTij=change(mix.carry_BTij))

    sites = [module for module in model.modules() if isinstance(module, HyperConnection)]
    with ExitStack() as stack:
        for site in sites:
            stack.callback(site.register_forward_hook(changed).remove)
        yield
