"""A training run by a plan: a log, and checkpoints that resume bit for bit. `python -m minidsv4 train`."""

import argparse
import contextlib
import copy
import hashlib
import pickle
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minidsv4 import options
from minidsv4.checkpoint import load, save
from minidsv4.fast import FAST
from minidsv4.files import atomic_file, writable_folder
from minidsv4.model.model import Model
from minidsv4.ops import Ops
from minidsv4.train.corpus import Corpus, python_source
from minidsv4.train.data import Batch, Mixture, Packed
from minidsv4.train.log import Log, read_log
from minidsv4.train.loop import Trainer, bits_per_byte
from minidsv4.train.plan import Plan
from minidsv4.train.programs import document, programs
from minidsv4.train.tokenizer import Tokenizer

STATE, LOG, TOKENIZER, PICTURE = "training.pt", "log.jsonl", "tokenizer.json", "tour.png"
MADE = ("config.json", "model.safetensors", "SHA256SUMS", TOKENIZER, PICTURE)  # at the end of a run
HELD_OUT_PROGRAMS = 200
REHEARSED = 3  # steps of each stage that are timed to tell how many fit into the minutes asked for


class Texts:
    """What there is to learn from and to be measured by, kind by kind: what the plan gives a share.

    corpus  the Python source that was found; None where it has no share
    """

    def __init__(self, plan: Plan):
        self.train, self.held_out, self.shares = {}, {}, {}
        self.corpus: Corpus | None = None
        if plan.source:
            self.corpus = python_source()
            self.add("source", plan.source, [file.text for file in self.corpus.train])
            unseen = [file.text for file in self.corpus.held_out]
            self.held_out["source"] = first_bytes(unseen, plan.held_out_bytes)
        if plan.programs:
            made = [document(program) for program in programs(plan.seed, plan.n_programs, composed=True)]
            unseen = programs(plan.seed + 1, 2 * HELD_OUT_PROGRAMS, composed=True)
            self.add("programs", plan.programs, made)
            unseen = [document(program) for program in unseen]
            self.held_out["programs"] = [text for text in unseen if text not in set(made)][:HELD_OUT_PROGRAMS]

    def add(self, name: str, share: int, texts: list[str]) -> None:
        self.train[name], self.shares[name] = texts, share

    def digest(self) -> str:
        """What tells this text from any other: the standard library differs between releases of Python."""
        texts = (text for kind in self.train.values() for text in kind)
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def first_bytes(texts: Iterable[str], room: int) -> list[str]:
    """The first bytes of some texts, in the order of their hashes, which is no order of theirs."""
    chosen = []
    for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if room > 0:
            chosen.append(text.encode()[:room].decode(errors="ignore"))
            room -= len(chosen[-1].encode())
    return chosen


class Batcher:
    """The batch of any step of a plan, without a look at earlier ones; every stage cuts its own rows."""

    def __init__(self, plan: Plan, texts: Texts, tokenizer: Tokenizer):
        self.plan, self.mixtures = plan, {}
        self.documents = {name: tokenizer.encode_all(kind) for name, kind in texts.train.items()}
        self.shares = list(texts.shares.values())

    def at(self, step: int) -> Batch | Tensor:
        """The batch of a step, from 0: what `Model.loss` takes."""
        number, step_of_stage = self.plan.stage_and_step(step)
        if number not in self.mixtures:
            stage, seed = self.plan.stages[number], self.plan.seed + number
            align = self.plan.config.document_grid if self.plan.masks else 1
            packed = [Packed(documents, stage.length, seed, align) for documents in self.documents.values()]
            self.mixtures = {number: Mixture(packed, self.shares, stage.batch_size, seed)}
        batch = self.mixtures[number].at(step_of_stage)
        return batch if self.plan.masks else batch.ids_BT


class Run:
    """A model in training with all that belongs to it, in a folder.

    plan     what to do; a resumed run goes on with the plan that it began with
    folder   exists; gets `training.pt` (all that is needed to go on), `log.jsonl`, the tokenizer, and the model
    resume   go on from the folder's `training.pt`
    seconds  the budget of a plan that ends after seconds, of all parts of the run together; None is the plan's own
    ops      the table of operations that the model runs
    start    folder of the model and tokenizer that learn on; None begins with random weights
    before   bits per byte of unseen text, kind by kind, of the untrained model
    raises   ValueError where there is nothing to go on from, or where text differs from what the run began with
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        resume: bool = False,
        seconds: float | None = None,
        ops: Ops = FAST,
        start: Path | None = None,
    ):
        state = read_state(folder) if resume else None
        plan = Plan.from_dict(state["plan"]) if state else plan
        self.plan = plan = plan if seconds is None else plan.lasting(seconds)
        self.folder, self.texts = folder, Texts(plan)
        if state and state["digest"] != self.texts.digest():
            raise ValueError("--resume: this Python's source differs from what the run began with; use the same Python")
        texts = (text for kind in self.texts.train.values() for text in kind)
        self.tokenizer = Tokenizer.train(texts, plan.config.vocab_size)
        torch.manual_seed(plan.seed)
        self.model = Model(plan.config, ops)
        self.batches = Batcher(plan, self.texts, self.tokenizer)
        self.trainer = Trainer(self.model, self.batches.at, plan.recipe, self.stage_at, self.after)
        self.before = state["before"] if state else {}
        if start:
            self.learn_on_from(start)
        if state:
            self.model.load_state_dict(state["model"])
            self.trainer.load_state_dict(state["trainer"])

    def learn_on_from(self, start: Path) -> None:
        """Take the weights of a model that has learned already.

        raises  ValueError where it is of another config, or its tokenizer was trained on other text
        """
        model = load(start)
        for field, wanted in vars(self.plan.config).items():
            found = getattr(model.config, field)
            if found != wanted:
                raise ValueError(f"--model: {start} has {field} = {found}, the recipe {wanted}; its config must fit")
        if Tokenizer.load(start / TOKENIZER).inner.to_str() != self.tokenizer.inner.to_str():
            raise ValueError(f"--model: the tokenizer of {start} was trained on other text; use the Python of its run")
        self.model.load_state_dict(model.state_dict())

    def train(self) -> bool:
        """Learn to the end of the recipe, and save; False where Ctrl-C asked for an end, after saving as well.

        raises  OSError with a sentence where it cannot be saved; what the folder kept before is then still whole
        """
        if self.trainer.step == 0:
            self.before = self.held_out()
            self.replace()
        self.log = Log(self.folder / LOG, self.trainer.step)
        if self.trainer.step == 0:
            self.log.write(self.header())
        finished = self.trainer.train()
        self.keep()
        self.tokenizer.save(self.folder / TOKENIZER)  # first, so that the checksums cover it
        save(self.model, self.folder)
        return finished

    def stage_at(self, step: int) -> str:
        """The kind of attention at a step."""
        return self.plan.stages[self.plan.stage_and_step(step)[0]].attention

    def header(self) -> dict:
        """The first line of the log: what is run, on what."""
        n = sum(parameter.numel() for parameter in self.model.parameters())
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        run = {"recipe": self.plan.fields, "parameters": n, "digest": self.texts.digest(), "held_out": self.before}
        return {"step": 0, **run, **versions}

    def after(self, record: dict) -> None:
        """Log a step; measure and keep at the steps that the plan says."""
        step = record["step"]
        record |= {"tokens": self.trainer.tokens, "attention": self.stage_at(step - 1)}
        if _due(step, self.plan.held_out):
            record |= {"held_out": self.held_out()}
        self.log.write(record)
        if _due(step, self.plan.checkpoint):
            self.try_to_keep()

    def held_out(self) -> dict[str, float]:
        """Bits per byte of unseen text, kind by kind."""
        length = self.plan.stages[-1].length
        return {
            name: round(bits_per_byte(self.model, self.tokenizer, texts, length), 4)
            for name, texts in self.texts.held_out.items()
        }

    def replace(self) -> None:
        """Keep a state from which this run begins, and remove what another one left.

        The state comes first: after a kill at any place the folder goes on with one run alone, the old or the new one.
        """
        self.keep()
        for name in MADE:
            (self.folder / name).unlink(missing_ok=True)

    def keep(self) -> None:
        """Write all that is needed to go on; what was kept before stays whole until this is.

        raises  OSError with a sentence where it cannot be written
        """
        state = {"plan": self.plan.fields, "digest": self.texts.digest(), "before": self.before}
        state |= {"model": self.model.state_dict(), "trainer": self.trainer.state_dict()}
        try:
            with atomic_file(self.folder / STATE) as scratch:
                torch.save(state, scratch)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError for a full disk
            raise OSError(
                f"run: {self.folder} cannot be saved to ({error}); free some space or give another --out"
            ) from error

    def try_to_keep(self) -> None:
        """On the way a full disk is no reason to stop: what was kept last is still there."""
        try:
            self.keep()
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):  # nor is a stderr that is closed
                tqdm.write(str(error), file=sys.stderr)


def _due(step: int, every: int) -> bool:
    """Whether a step is one of every so many; never where that is 0."""
    return every > 0 and step % every == 0


def path_of_state(folder: Path) -> Path:
    """The file with the state of training.

    raises  ValueError where there is none
    """
    if not (folder / STATE).is_file():
        raise ValueError(f"--resume: {folder} holds no {STATE} to go on from; begin without --resume")
    return folder / STATE


def read_state(folder: Path) -> dict:
    """The state of training that a run's folder keeps.

    raises  ValueError where there is none, one that cannot be read, or one of an older version of this package
    """
    path = path_of_state(folder)
    try:
        state = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"--resume: {folder / STATE} cannot be read; begin anew with --overwrite") from error
    missing = [name for name in ("plan", "digest", "before", "model", "trainer") if name not in state]
    if missing:
        raise ValueError(
            f"--resume: {folder / STATE} has no {missing[0]}, so it is of another version; begin anew with --overwrite"
        )
    return state


def seconds_per_step(run: Run) -> list[float]:
    """How long a step of each stage takes on this machine, measured on a copy of the model."""
    found, start = [], 0
    for stage in run.plan.stages:
        rehearsal = Trainer(copy.deepcopy(run.model), None, run.plan.recipe, lambda _, kind=stage.attention: kind)
        batch, times = run.trainer.batch_at(start), []
        for _ in range(REHEARSED):
            began = time.perf_counter()
            rehearsal.learn(batch)
            times.append(time.perf_counter() - began)
        found.append(min(times))
        start += stage.steps
    return found


# --- the command ---


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 train`."""
    parser.add_argument("--recipe", default="mini", help="`mini`, `mini_fp4`, `tour`, or a JSON file")
    parser.add_argument("--model", type=options.folder, help="folder of a model to go on from; else random weights")
    add_folder_options(parser, "runs/mini")
    steps, minutes = options.count, options.minutes
    parser.add_argument("--steps", type=steps, help="all stages longer or shorter, so many steps together")
    parser.add_argument("--minutes", type=minutes, help="as many steps as fit, by a rehearsal on this machine")
    threads = "others round differently, so a resumed run keeps to its own"
    parser.add_argument("--threads", type=options.whole(1, options.MOST_THREADS), default=1, help=threads)


def add_folder_options(parser: argparse.ArgumentParser, folder: str) -> None:
    """Where a run is kept, and what becomes of the one that is there."""
    parser.add_argument("--out", type=options.folder, default=folder, help="folder that keeps the run")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--resume", action="store_true", help="go on from what --out keeps, bit for bit")
    one.add_argument("--overwrite", action="store_true", help="begin anew, in place of the run that --out keeps")


def main(arguments: argparse.Namespace) -> int:
    """Train by a recipe; 130 after Ctrl-C, which keeps what was learned."""
    plan = planned(arguments)
    folder = folder_of_run(arguments, "train")
    torch.set_num_threads(arguments.threads)
    run = begin(arguments, plan, folder)
    ends = f"{run.plan.recipe.steps} steps" if run.plan.recipe.steps else f"{run.plan.recipe.seconds:g} seconds"
    print(f"{ends}, {run.trainer.step} steps of them done; the log: {run.folder / LOG}", flush=True)
    if not run.train():
        print(f"Stopped; go on with: python -m minidsv4 train --resume --out {options.pasted(folder)}")
        return 130
    for name, bits in run.held_out().items():
        print(f"{bits:.2f} bits per byte of unseen {name}")
    print(f'Now try: python -m minidsv4 generate --model {options.pasted(folder)} "def fib(n):"')
    return 0


def folder_of_run(arguments: argparse.Namespace, command: str) -> Path:
    """The folder that `--out` names, made if need be; nothing is made or changed where it is refused.

    raises  ValueError where it holds a run and neither --resume nor --overwrite is given, or none to resume;
            OSError with a sentence where nothing can be written into it
    """
    folder = Path(arguments.out)
    if arguments.resume:
        path_of_state(folder)
    elif not arguments.overwrite and holds_run(folder):
        again = f"python -m minidsv4 {command} --resume --out {options.pasted(folder)}"
        make = f" (`make {command} ARGS=--overwrite`)" * (command == "tour")
        raise ValueError(
            f"{command}: {folder} holds a run; `{again}` goes on with it, --overwrite in place of --resume begins "
            f"anew and replaces it{make}"
        )
    return writable_folder(folder)


def holds_run(folder: Path) -> bool:
    """Whether there is a state, a model, a tokenizer, a tour's picture, or a log with a step in it."""
    logged = (folder / LOG).is_file() and len(read_log(folder / LOG)) > 1
    return logged or any((folder / name).exists() for name in (STATE, *MADE))


def planned(arguments: argparse.Namespace) -> Plan:
    """The recipe, or one of other length; of a resumed run only the folder knows.

    raises  ValueError for a recipe that is none, and a length that goes with no recipe of this kind or with --resume
    """
    if arguments.resume and (arguments.steps or arguments.minutes):
        raise ValueError("--resume: a run keeps the steps that it began with; leave --steps and --minutes out")
    if arguments.resume and arguments.model:
        raise ValueError("--resume: a run goes on with its own weights; leave --model out")
    plan = Plan.read(arguments.recipe)
    if arguments.steps:
        plan = plan.of_steps(arguments.steps)
    if arguments.minutes and plan.recipe.seconds:
        plan = plan.lasting(60 * arguments.minutes)
    return plan


def begin(arguments: argparse.Namespace, plan: Plan, folder: Path) -> Run:
    """The run of a plan, or the folder's; a plan of steps is cut to the minutes asked for."""
    start = Path(arguments.model) if arguments.model else None
    run = Run(plan, folder, arguments.resume, ops=arguments.ops, start=start)
    if arguments.minutes and plan.recipe.seconds is None:
        whole = sum(s * stage.steps for s, stage in zip(seconds_per_step(run), plan.stages))
        run = Run(plan.scaled(60 * arguments.minutes / whole), folder, ops=arguments.ops, start=start)
    return run
