"""Muon: momentum of every matrix, orthogonalised; AdamW for embedding, head, norms, mHC biases and gates, vectors.

E experts, F expert width, D width, N streams, G output groups. Report section 2.4: Algorithm 1, equation (28). Every
matrix that the report writes with a symbol of its own is orthogonalised alone, however it is stored: each expert's
gate, up and down, each output group of `wo_a`, the a and b series of an overlapping compressor, pre, post and carry
of a stream mix. V4 does not say what it does with those it stores together; this is our choice.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minidsv4.model.attention import WindowAttention
from minidsv4.model.compressor import OverlapCompressor
from minidsv4.model.hyper_connection import HyperConnection
from minidsv4.model.model import Model
from minidsv4.model.moe import Experts

FAST, EXACT = (3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)  # coefficients of x, x^3 and x^5
SCHEDULE = (*[FAST] * 8, *[EXACT] * 2)
UPDATE_RMS = 0.18  # the usual size of an AdamW update, so that AdamW's rate and decay can be used as they are
AT_ONCE = 1 << 19  # numbers of a stack: 2 MB in float32, which stay near the core through all ten steps
STRIDE = 8  # sides are filled up to this, so that all matrices of a stack lie alike in memory and are rounded alike
WHOLE = (1,)  # the parts of a parameter that is one matrix


def orthogonalise(
    stack: Tensor,
    schedule: Sequence[tuple[float, float, float]] = SCHEDULE,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Nearly `U V^T` of each matrix `U S V^T`; eq. (28).

    Steps `X <- a X + (b X X^T + c (X X^T)^2) X` begin at norm 1.

    stack     matrices of one shape [how many, n, m]; the Gram matrix is taken on the
              shorter side
    schedule  (a, b, c) of every step
    dtype     of the products: torch.bfloat16 is stable and fast where the hardware has
              it; None is the stack's own
    returns   the same shape and dtype; singular values from 1e-3 of the norm end in 1
              to 1.0006, 0.99 to 1.01 in bfloat16, and 1e-4 at 1.002. A matrix of
              zeros stays zero
    """
    x = _wide(stack)
    n, m = x.shape[1:]
    x = F.pad(x, (0, -m % STRIDE, 0, -n % STRIDE))  # zeros that stay zero
    x = unit_norm(x).to(dtype or stack.dtype)
    for a, b, c in schedule:
        gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, factor, x, beta=a)
    x = x[:, :n, :m]
    return (x if stack.shape[1] == n else x.mT).to(stack.dtype)


def unit_norm(x: Tensor) -> Tensor:
    """Each matrix divided by its Frobenius norm; a matrix of zeros stays as it is."""
    smallest = torch.finfo(x.dtype).tiny
    largest = x.abs().amax((-2, -1), keepdim=True)
    x = x / largest.clamp(min=smallest)  # else squares of tiny gradients vanish
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    return x / norm.clamp(min=smallest)


class ParameterSpec(NamedTuple):
    """Where one parameter goes: the relative heights of the matrices that lie in it one below the other, or AdamW."""

    name: str
    parameter: nn.Parameter
    parts: tuple[int, ...] | None

    def n_matrices(self) -> int:
        """How many matrices Muon takes out of it."""
        return sum(len(matrices) for matrices in split_matrices(self.parameter, self.parts)) if self.parts else 0


def split_matrices(tensor: Tensor, parts: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The matrices that a parameter holds, as views: for each part a stack [experts or 1, rows, columns]."""
    stack = tensor if tensor.ndim == 3 else tensor[None]
    unit = stack.shape[1] // sum(parts)
    return stack.split([part * unit for part in parts], dim=1)


def parameter_specs(model: nn.Module) -> list[ParameterSpec]:
    """Every parameter that learns and where it goes, in the model's order.

    returns  [ParameterSpec]; `parts` is None for AdamW: what is no matrix, embedding, head and position biases
    """
    parts, found = {}, []
    for module in model.modules():
        parts.update(_parts_of(module))
    for name, parameter in model.named_parameters():
        usual = None if parameter.ndim < 2 or name.endswith("ape") else WHOLE
        if parameter.requires_grad:
            found.append(ParameterSpec(name, parameter, parts.get(parameter, usual)))
    return found


def _parts_of(module: nn.Module) -> dict[nn.Parameter, tuple[int, ...] | None]:
    """What is to be known of a module's own parameters: those that hold several matrices, and the head."""
    match module:
        case nn.Embedding():
            return {module.weight: None}
        case Model():
            return {module.head.weight: None}
        case Experts():
            return {module.w13: (1, 1)}
        case WindowAttention():
            return {module.wo_a.weight: WHOLE * module.groups}
        case OverlapCompressor():
            return {module.wkv.weight: (1, 1), module.wgate.weight: (1, 1)}
        case HyperConnection():
            return {module.fn: (1, 1, module.streams)}
    return {}


def table(model: nn.Module) -> str:
    """`parameter_specs` to read: a line for all parameters of one name and shape, those of Muon first."""
    kinds = defaultdict(list)
    for spec in parameter_specs(model):
        name = re.sub(r"^(layers|mtp)\.\d+\.", "", spec.name).removesuffix(".weight")
        kinds[name, tuple(spec.parameter.shape), spec.parts].append(spec)
    lines = [f"{'parameter':32}{'how often':>10}{'shape':>15}{'goes to':>9}  as"]
    for (name, shape, parts), found in sorted(kinds.items(), key=lambda kind: kind[0][2] is None):
        n = found[0].n_matrices()
        rows = " + ".join(str(part.shape[1]) for part in split_matrices(found[0].parameter, parts)) if parts else ""
        form = f"{n} {'matrix' if n == 1 else 'matrices'}, rows {rows}" if parts else "numbers"
        sizes = " x ".join(map(str, shape))
        lines.append(f"{name:32}{len(found):>10}{sizes:>15}{'Muon' if parts else 'AdamW':>9}  {form}")
    return "\n".join(lines)


def muon(model: nn.Module, rate: float, **options) -> "Muon":
    """The optimizer of a model, both parts at one rate.

    rate     learning rate, of the size that AdamW would have
    options  of `Muon`
    """
    return Muon(parameter_specs(model), rate, **options)


class Muon(torch.optim.Optimizer):
    """Algorithm 1, and AdamW in the groups whose `parts` is None; set `lr` of every group to follow a schedule.

    specs     which parameters, and where each goes: `parameter_specs(model)`
    momentum  `M <- momentum M + G`, without (1 - momentum); Nesterov: the step is that of `momentum M + G`
    betas     of AdamW, as its eps
    decay     weight decay of both, decoupled: `W <- (1 - rate decay) W`
    dtype     of Newton-Schulz's products; None is each parameter's own
    raises    ValueError for a rate below 0, a momentum outside 0 .. 1, or a parameter of no use to Muon
    """

    def __init__(
        self,
        specs: Iterable[ParameterSpec],
        rate: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-20,
        decay: float = 0.1,
        dtype: torch.dtype | None = None,
    ):
        if not rate >= 0 or not 0 <= momentum < 1:
            raise ValueError(f"muon: rate = {rate}, momentum = {momentum} cannot be; 0 or more, and from 0 to below 1")
        groups = defaultdict(list)
        for spec in specs:
            _check(spec)
            groups[spec.parts].append(spec.parameter)
        adamw, common = {"betas": betas, "eps": eps}, {"lr": rate, "weight_decay": decay}
        newton = {"momentum": momentum, "dtype": dtype}
        given = [{"params": p, "parts": parts} | (newton if parts else adamw) for parts, p in groups.items()]
        super().__init__(given, common)

    @torch.no_grad()
    def step(self, closure=None):
        """Move every parameter that has a gradient.

        returns  what the closure returns, where there is one
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter, group in self.with_gradient():
            if group["parts"] is None:
                self._adamw(parameter, group)
        for pieces in self.same_shape():
            update(pieces)
        return loss

    def with_gradient(self) -> Iterator[tuple[nn.Parameter, dict]]:
        """Each parameter to move, and its group."""
        for group in self.param_groups:
            yield from ((parameter, group) for parameter in group["params"] if parameter.grad is not None)

    def same_shape(self) -> list[list["Piece"]]:
        """Take the gradients into the momenta.

        returns  the matrices to orthogonalise, those of one shape together
        """
        shapes = defaultdict(list)
        for parameter, group in self.with_gradient():
            if group["parts"] is None:
                continue
            state, mu = self.state[parameter], group["momentum"]
            momentum = state.setdefault("momentum", torch.zeros_like(parameter))
            ahead = momentum.mul_(mu).add_(parameter.grad).mul(mu).add_(parameter.grad)
            weights = split_matrices(parameter, group["parts"])
            for weight, direction in zip(weights, split_matrices(ahead, group["parts"])):
                piece = Piece(weight, direction, group)
                shapes[piece.kind()].append(piece)
        return list(shapes.values())

    def _adamw(self, parameter: nn.Parameter, group: dict) -> None:
        """One step of AdamW, with bias correction."""
        state, (first, second) = self.state[parameter], group["betas"]
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        square = state.setdefault("square", torch.zeros_like(parameter))
        state["step"] = state.get("step", 0) + 1
        mean.lerp_(parameter.grad, 1 - first)
        square.mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
        root = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, root, value=-group["lr"] / (1 - first ** state["step"]))


class Piece(NamedTuple):
    """Matrices of one parameter [how many, n, m]: the weights, seen in place, and the momentum looked ahead."""

    weight: Tensor
    ahead: Tensor
    group: dict

    def kind(self) -> tuple:
        """Equal for those that can be stacked: sides whatever their order, and where and how it is computed."""
        return (*sorted(self.weight.shape[1:]), self.weight.dtype, self.weight.device, self.group["dtype"])


def update(pieces: list[Piece]) -> None:
    """Orthogonalise matrices of one shape together, and move their weights.

    Steps 3 to 5 of Algorithm 1.
    """
    stack = torch.cat([_wide(piece.ahead) for piece in pieces])
    few = max(1, AT_ONCE // stack[0].numel())
    longer = stack.shape[-1]
    dtype = pieces[0].group["dtype"]
    turned = torch.cat([orthogonalise(some, dtype=dtype) for some in stack.split(few)])
    steps = turned.split([len(piece.weight) for piece in pieces])
    for piece, step in zip(pieces, steps):
        rate, decay = piece.group["lr"], piece.group["weight_decay"]
        scale = -rate * UPDATE_RMS * longer**0.5
        _wide(piece.weight).mul_(1 - rate * decay).add_(step, alpha=scale)


def _wide(stack: Tensor) -> Tensor:
    """The matrices, turned on their side where they are taller than wide."""
    return stack.mT if stack.shape[-2] > stack.shape[-1] else stack


def _check(spec: ParameterSpec) -> None:
    shape, parts = tuple(spec.parameter.shape), spec.parts
    if parts is not None and (len(shape) not in (2, 3) or shape[-2] % sum(parts)):
        raise ValueError(f"muon: {spec.name} of shape {shape} holds no matrices of heights {parts}; AdamW takes it")
