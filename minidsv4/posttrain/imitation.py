"""Supervised start of post-training: the base model imitates replies of many writers, good ones and others.

B batch, T tokens. Only tokens of replies are learned; prompts are given. Report section 5.1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minidsv4.model.indexer import Indexer
from minidsv4.model.layer import watch
from minidsv4.model.losses import index_calls, indexer_loss
from minidsv4.model.model import Model
from minidsv4.posttrain.objective import Objective
from minidsv4.posttrain.rows import Rows, log_probs, rows_of
from minidsv4.posttrain.tasks import demonstration, generator_of, problems
from minidsv4.posttrain.tool_calls import tool_demonstration
from minidsv4.train.data import Batch
from minidsv4.train.tokenizer import Tokenizer

TOOLS_EVERY = 8  # steps: every eighth batch shows calls of a tool
TOOLS_LONGER = 4  # times: its rows are so much longer, and so many times fewer


class ImitationLosses(NamedTuple):
    """`total = main + indexer`: cross-entropy of the replies' tokens, and the indexers' own, in nats."""

    total: Tensor
    main: Tensor
    indexer: Tensor


class Imitation(Objective):
    """A policy that learns demonstrations of tasks, and of a tool.

    policy      learns
    tasks       names of the tasks, equally often
    batch_size  B
    seed        of problems and writers
    """

    def __init__(self, policy: Model, tokenizer: Tokenizer, tasks: tuple[str, ...], batch_size: int, seed: int):
        super().__init__(policy)
        self.tokenizer, self.tasks = tokenizer, tasks
        self.batch_size, self.seed = batch_size, seed
        self.rows: Rows | None = None

    def batch_at(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        generator = generator_of("writers", self.seed, step)
        if step % TOOLS_EVERY == TOOLS_EVERY - 1:
            texts = [tool_demonstration(generator) for _ in range(max(1, self.batch_size // TOOLS_LONGER))]
        else:
            given = problems(f"imitation {self.seed} {step}", self.batch_size, self.tasks)
            texts = [(problem.prompt(), demonstration(generator, problem)) for problem in given]
        prompts, replies = zip(*texts)
        self.rows = rows_of(*(list(map(self.tokenizer.encode_marked, part)) for part in (prompts, replies)))
        return self.rows.batch()

    def loss(self, ids_BT: Tensor, document_BT: Tensor, mtp_weight: float) -> ImitationLosses:
        """The losses of the batch that `batch_at` made last."""
        assert self.rows is not None and torch.equal(self.rows.ids_BT, ids_BT)
        with watch(self.policy, Indexer, "attend") as calls:
            main = -log_probs(self.policy, self.rows).mean()
        indexer = sum(map(indexer_loss, index_calls(calls)), main.new_zeros(()))
        return ImitationLosses(main + indexer, main, indexer)
