"""A tiny student and its teachers, for notebook 18: a run of distillation that takes a second."""

import contextlib
import io

import torch

from minidsv4.experiments import specialists
from minidsv4.model.model import Model
from minidsv4.posttrain.distill import Distillation, Teachers
from minidsv4.posttrain.grpo import Sampling, Write
from minidsv4.posttrain.run import PostTraining
from minidsv4.posttrain.tokens import task_tokenizer


def tiny(seed: int) -> Model:
    """An untrained model of the specialists' shape, with narrow experts."""
    torch.manual_seed(seed)
    return Model(specialists.small_config().replace(moe_intermediate_size=8))


def learning(folder, write: Write) -> PostTraining:
    """A run of four rounds in a folder, a checkpoint every second."""
    sampling = Sampling(specialists.TASKS, 6, group=1, n_tokens=4, updates=1)
    teachers = Teachers({"sum": tiny(2), "run": tiny(3)})
    student = Distillation(tiny(0), teachers, task_tokenizer(), sampling, write)
    return PostTraining(student, specialists.recipe(4, 0.01), folder, {}, every=2)


def finish(run: PostTraining) -> None:
    """Learn to the end, without a progress bar."""
    with contextlib.redirect_stderr(io.StringIO()):
        run.run()
