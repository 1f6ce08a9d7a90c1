"""The training loop: Muon or AdamW, warm-up, constant, cosine, a budget in steps or seconds; bits per byte of a text.

B batch, T tokens. Report section 4.2.2 for the shape of the recipe; the numbers are for a model of a few million
parameters. `pretrain.py` makes a run of it that is logged, kept and resumed.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import NamedTuple, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from minidsv4.lowbit.qat import fp4_ops
from minidsv4.ops import upcast
from minidsv4.train.balance import balanced, loads, max_violation
from minidsv4.train.data import Batch, eval_rows, n_targets
from minidsv4.train.indexer import clip_apart, dense_attention, freeze_indexers, freeze_trunk
from minidsv4.train.muon import muon
from minidsv4.train.recipe import Recipe
from minidsv4.train.tokenizer import Tokenizer
from minidsv4.visibility import real_tokens


def new_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Muon as it parts the model, or AdamW with decay of matrices only."""
    if recipe.optimizer == "muon":
        return muon(model, recipe.rate, decay=recipe.weight_decay)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95))


def inputs(batch: Tensor | Batch, model: nn.Module) -> dict[str, Tensor]:
    """A batch as the arguments of `Model.loss`, on the model's device."""
    device = next(model.parameters()).device
    parts = {"ids_BT": batch} if isinstance(batch, Tensor) else batch._asdict()
    return {name: part.to(device) for name, part in parts.items()}


class Stage(NamedTuple):
    """What a step of one kind does to the model while it runs, and whether all but the indexers learn."""

    changes: tuple[Callable[[nn.Module], AbstractContextManager], ...]
    trunk_learns: bool

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change(model))
            yield


@contextmanager
def reading_fp4(model: nn.Module) -> Iterator[None]:
    """Inside, routed experts, index queries and keys are read in MXFP4 (report section 3.4); the masters learn."""
    table = model.table
    try:
        yield model.use(fp4_ops(table))
    finally:
        model.use(table)


STAGES = {
    "dense": Stage((dense_attention, freeze_indexers), trunk_learns=True),
    "warm-up": Stage((dense_attention, freeze_trunk), trunk_learns=False),
    "sparse": Stage((), trunk_learns=True),
    "sparse, FP4": Stage((reading_fp4,), trunk_learns=True),
}


class Trainer:
    """A model that learns, and all that is needed to go on after a stop.

    model     has `loss(ids_BT)`, whose `total` is minimised
    batch_at  function from a step, from 0, to token ids [B, T + 1], such as `Batches.at`, or to a `Batch`
    stage_at  function from a step to a name in `STAGES`: what the CSA layers read and who learns
    after     called after each step with what there is to log of it: a dict of plain numbers
    """

    def __init__(
        self,
        model: nn.Module,
        batch_at: Callable[[int], Tensor | Batch],
        recipe: Recipe,
        stage_at: Callable[[int], str] = lambda step: "sparse",
        after: Callable[[dict], None] = lambda record: None,
    ):
        self.model, self.batch_at, self.recipe, self.stage_at, self.after = model, batch_at, recipe, stage_at, after
        self.step, self.tokens, self.seconds, self.losses = 0, 0, 0.0, []
        self.anticipation = None  # or one of `routing.py`
        self.optimizer = new_optimizer(model, recipe)

    def train(self) -> bool:
        """Learn until the budget is used.

        returns  True; False where Ctrl-C asked for an end, which comes after the step under way
        """
        self.model.train()
        with stop_on_interrupt() as stop, _Bar(self) as bar:
            while self.recipe.progress(self.step, self.seconds) < 1:
                if stop.is_set():
                    return False
                start = time.perf_counter()
                record = self.learn(self.batch_at(self.step))
                spent = time.perf_counter() - start
                self.seconds += spent
                self.after(
                    record | {"seconds": round(self.seconds, 3), "tokens_per_second": round(record["n"] / spent)}
                )
                bar.show()
        return True

    def stage(self, step: int) -> Stage:
        """What a step does to the model."""
        return STAGES[self.stage_at(step)]

    def learn(self, batch: Tensor | Batch) -> dict:
        """One step; returns what there is to log of it.

        raises  ValueError where loss or gradients are no longer finite; weights and biases
                are then as they were
        """
        recipe = self.recipe
        progress = recipe.progress(self.step, self.seconds)
        rate = recipe.rate_at(self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        stage = self.stage(self.step)
        routing = self.anticipation.at(self, batch) if self.anticipation else nullcontext()
        speed = recipe.balance_speed * stage.trunk_learns
        rows = inputs(batch, self.model)
        real_BT = real_tokens(**rows)
        with stage.of(self.model), routing, balanced(self.model, speed, real_BT) as calls:
            losses = self.model.loss(**rows, mtp_weight=recipe.mtp_weight(progress))
            self.optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            norm = clip_apart(self.model, recipe.clip)
            self.check_finite(losses.total.item(), norm.item())
            self.optimizer.step()
        n = n_targets(batch)
        self.step, self.tokens = self.step + 1, self.tokens + n
        self.losses.append(losses.main.item())
        violations = [max_violation(load_E) for load_E in loads(calls, real_BT).values()]
        worst = max(violations, default=0.0)
        record = {"step": self.step, "n": n, **parts_of(losses), "rate": rate}
        return record | {"norm": norm.item(), "max_violation": worst}

    def check_finite(self, loss: float, norm: float) -> None:
        """Raise ValueError where a step would write NaN or infinity into the weights."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ValueError(
                f"train: step {self.step + 1} has loss {loss} and a gradient of norm {norm}; lower rate = "
                f"{self.recipe.rate} or raise warm_up. What the last checkpoint kept is whole"
            )

    def state_dict(self) -> dict:
        """Everything but the model's weights, for `torch.save`."""
        state = {name: getattr(self, name) for name in ("step", "tokens", "seconds", "losses")}
        return state | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`; the model is given in the state that belongs to it."""
        for name in ("step", "tokens", "seconds"):
            setattr(self, name, state[name])
        self.losses = list(state["losses"])
        self.optimizer.load_state_dict(state["optimizer"])


def parts_of(losses: NamedTuple) -> dict[str, float]:
    """The parts of a loss as plain numbers, by name, without their total."""
    return {name: value.item() for name, value in losses._asdict().items() if name != "total"}


def fastest_threads(trainer: Trainer) -> int:
    """1, or torch's own number of threads: whichever computes the gradients of half a batch in less time.

    Threads that wait for each other on a busy machine are far slower than one. Changes nothing of the trainer.
    """
    half = {name: part[: 1 + len(part) // 2] for name, part in inputs(trainer.batch_at(0), trainer.model).items()}
    seconds, before = {}, torch.get_num_threads()
    for n_threads in sorted({1, before}):
        torch.set_num_threads(n_threads)
        for _ in range(2):  # the first one also warms up
            start = time.perf_counter()
            trainer.model.loss(**half).total.backward()
            seconds[n_threads] = time.perf_counter() - start
    trainer.optimizer.zero_grad(set_to_none=True)
    torch.set_num_threads(before)
    return min(seconds, key=seconds.get)


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that no step is cut in two; a second Ctrl-C interrupts as ever."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(_number, _frame):
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar:
    """A line that says how far training is: share of the budget, loss, speed, time left.

    Where stderr cannot be written to, or no longer, there is no line, and training goes on.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.tokens, self.first = trainer, trainer.tokens, trainer.seconds
        self.began = trainer.recipe.progress(trainer.step, trainer.seconds)

    def __enter__(self) -> Self:
        layout = "training {percentage:3.0f}% |{bar:24}| {desc}"
        closed = sys.stderr is None or sys.stderr.closed
        pace = 0.2 if not closed and sys.stderr.isatty() else 20.0  # seconds: a log file keeps every line
        delay = 1e-9  # or it would write at once, where no error can be caught
        self.bar = tqdm(total=100, bar_format=layout, mininterval=pace, delay=delay, disable=closed)
        self.write(self.bar.refresh)
        return self

    def show(self) -> None:
        trainer = self.trainer
        progress = min(1.0, trainer.recipe.progress(trainer.step, trainer.seconds))
        spent = trainer.seconds - self.first
        time_left = tqdm.format_interval(spent * (1 - progress) / max(1e-9, progress - self.began))
        speed = f"{(trainer.tokens - self.tokens) / max(1e-9, spent):,.0f} tokens/s"
        self.bar.set_description_str(f"loss {trainer.losses[-1]:.2f}, {speed}, {time_left} left", refresh=False)
        self.write(lambda: self.bar.update(100 * progress - self.bar.n))

    def write(self, change: Callable[[], object]) -> None:
        """Change the line; the first time that this fails is the last."""
        try:
            change()
        except (OSError, ValueError):
            self.bar.disable = True

    def __exit__(self, *_error) -> None:
        self.write(self.bar.close)


@torch.inference_mode()
def bits_per_byte(model: nn.Module, tokenizer: Tokenizer, texts: Iterable[str], length: int = 256) -> float:
    """Bits that the model needs for each byte of some texts: summed negative log-likelihood / bytes / ln 2.

    Every token of every text is predicted exactly once, from BOS and at most `length - 1` tokens before it. Comparable
    between tokenizers, since it counts bytes.

    raises  ValueError where there is no byte to predict
    """
    texts = list(texts)
    n_bytes = sum(len(text.encode()) for text in texts)
    if not n_bytes:
        raise ValueError("bits_per_byte: the texts hold no byte; give at least one that is not empty")
    nats = 0.0
    rows = sorted(eval_rows(tokenizer.encode_all(texts), length), key=len)  # so that little is padding
    for start in range(0, len(rows), 8):
        nats += _nats(model, rows[start : start + 8])
    return nats / n_bytes / math.log(2)


def _nats(model: nn.Module, rows: list[list[int]]) -> float:
    """Summed negative log-likelihood of what the rows predict; padding comes last, where no token looks."""
    longest = max(len(row) for row in rows)
    device = next(model.parameters()).device
    ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    wanted_BT = torch.tensor([row[1:] + [-1] * (longest - len(row)) for row in rows], device=device)
    logits = rearrange(upcast(model(ids_BT[:, :-1])), "b t v -> (b t) v")
    return F.cross_entropy(logits, rearrange(wanted_BT, "b t -> (b t)"), ignore_index=-1, reduction="sum").item()
