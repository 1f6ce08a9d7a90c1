"""The plain training loop: AdamW, warm-up and cosine, a budget in steps or seconds; and bits per byte of unseen text.

B batch, T tokens. Report section 4.2.2 for the shape of the recipe; the numbers are for a model of a few million
parameters. V4 itself trains with Muon.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from minidsv4.model.norm import precise
from minidsv4.train.balance import balanced
from minidsv4.train.data import Tokenizer, eval_rows
from minidsv4.train.indexer import clip_apart

LOWEST_RATE = 0.1  # of the peak, at the end of the cosine


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn; at least one of `steps` and `seconds` is given, and the first reached ends it.

    rate           peak of the learning rate
    warm_up        steps from 0 to the peak; the cosine falls to a tenth of it at the end of the budget
    weight_decay   of matrices; vectors (norms, sinks, biases) have none
    clip           largest norm of all gradients together, the indexers' aside, which have one of their own
    balance_speed  how far a router's bias moves in a step; ten times V4's, since runs are short
    raises         ValueError without a budget, or with one that is not above 0
    """

    steps: int | None = None
    seconds: float | None = None
    rate: float = 3e-3
    warm_up: int = 30
    weight_decay: float = 0.1
    clip: float = 1.0
    balance_speed: float = 1e-2

    def __post_init__(self):
        budgets = {"steps": self.steps, "seconds": self.seconds}
        if all(value is None for value in budgets.values()):
            raise ValueError("recipe: neither steps nor seconds is given; training needs an end")
        for name, value in budgets.items():
            if value is not None and not value > 0:
                raise ValueError(f"recipe: {name} = {value} is no budget; it is above 0")

    def progress(self, step: int, seconds: float) -> float:
        """The share of the budget that is used, 1 at the end."""
        return max(step / (self.steps or math.inf), seconds / (self.seconds or math.inf))

    def rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up, then a cosine over the whole budget."""
        cosine = (1 + math.cos(math.pi * min(1.0, progress))) / 2
        return self.rate * min(1.0, (step + 1) / self.warm_up) * (LOWEST_RATE + (1 - LOWEST_RATE) * cosine)


class Trainer:
    """A model that learns, and all that is needed to go on after a stop.

    model     has `loss(ids_BT)`, whose `total` is minimised
    batch_at  function from a step, from 0, to token ids [B, T + 1]; such as `Batches.at`
    """

    def __init__(self, model: nn.Module, batch_at: Callable[[int], Tensor], recipe: Recipe):
        self.model, self.batch_at, self.recipe = model, batch_at, recipe
        self.step, self.seconds, self.losses = 0, 0.0, []
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95))

    def train(self) -> bool:
        """Learn until the budget is used.

        returns  True; False where Ctrl-C asked for an end, which comes after the step under way
        """
        self.model.train()
        with asked_to_stop() as asked, _Bar(self) as bar:
            while self.recipe.progress(self.step, self.seconds) < 1:
                if asked.is_set():
                    return False
                start = time.perf_counter()
                n_tokens = self.learn(self.batch_at(self.step))
                self.seconds += time.perf_counter() - start
                bar.show(n_tokens)
        return True

    def learn(self, ids_BT: Tensor) -> int:
        """One step; returns how many tokens it learned to predict."""
        rate = self.recipe.rate_at(self.step, self.recipe.progress(self.step, self.seconds))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with balanced(self.model, self.recipe.balance_speed):
            losses = self.model.loss(ids_BT)
            self.optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            clip_apart(self.model, self.recipe.clip)
            self.optimizer.step()
        self.step += 1
        self.losses.append(losses.main.item())
        return ids_BT.shape[0] * (ids_BT.shape[1] - 1)

    def state_dict(self) -> dict:
        """Everything but the model's weights, for `torch.save`."""
        state = {name: getattr(self, name) for name in ("step", "seconds", "losses")}
        return state | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`; the model is given in the state that belongs to it."""
        self.step, self.seconds, self.losses = state["step"], state["seconds"], list(state["losses"])
        self.optimizer.load_state_dict(state["optimizer"])


def fastest_threads(trainer: Trainer) -> int:
    """1, or torch's own number of threads: whichever computes the gradients of half a batch in less time.

    Threads that wait for each other on a busy machine are far slower than one. Changes nothing of the trainer.
    """
    ids_BT, seconds, before = trainer.batch_at(0), {}, torch.get_num_threads()
    for n_threads in sorted({1, before}):
        torch.set_num_threads(n_threads)
        for _ in range(2):  # the first one also warms up
            start = time.perf_counter()
            trainer.model.loss(ids_BT[: 1 + len(ids_BT) // 2]).total.backward()
            seconds[n_threads] = time.perf_counter() - start
    trainer.optimizer.zero_grad(set_to_none=True)
    torch.set_num_threads(before)
    return min(seconds, key=seconds.get)


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that no step is cut in two; a second Ctrl-C interrupts as ever."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(_number, _frame):
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar:
    """A line that says how far training is: share of the budget, loss, speed, time left."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.tokens, self.first = trainer, 0, trainer.seconds
        self.began = trainer.recipe.progress(trainer.step, trainer.seconds)

    def __enter__(self) -> Self:
        layout = "training {percentage:3.0f}% |{bar:24}| {desc}"
        pace = 0.2 if sys.stderr.isatty() else 20.0  # seconds: a log file keeps every line
        self.bar = tqdm(total=100, bar_format=layout, mininterval=pace)
        return self

    def show(self, n_tokens: int) -> None:
        trainer = self.trainer
        self.tokens += n_tokens
        progress = min(1.0, trainer.recipe.progress(trainer.step, trainer.seconds))
        spent = trainer.seconds - self.first
        left = tqdm.format_interval(spent * (1 - progress) / max(1e-9, progress - self.began))
        speed = f"{self.tokens / max(1e-9, spent):,.0f} tokens/s"
        self.bar.set_description_str(f"loss {trainer.losses[-1]:.2f}, {speed}, {left} left", refresh=False)
        self.bar.update(100 * progress - self.bar.n)

    def __exit__(self, *_error) -> None:
        self.bar.close()


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
    rows = list(eval_rows(tokenizer.encode_all(texts), length))
    for start in range(0, len(rows), 8):
        nats += _nats(model, rows[start : start + 8])
    return nats / n_bytes / math.log(2)


def _nats(model: nn.Module, rows: list[list[int]]) -> float:
    """Summed negative log-likelihood of what the rows predict; padding comes last, where no token looks."""
    longest = max(len(row) for row in rows)
    device = next(model.parameters()).device
    ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    wanted_BT = torch.tensor([row[1:] + [-1] * (longest - len(row)) for row in rows], device=device)
    logits = rearrange(precise(model(ids_BT[:, :-1])), "b t v -> (b t) v")
    return F.cross_entropy(logits, rearrange(wanted_BT, "b t -> (b t)"), ignore_index=-1, reduction="sum").item()
