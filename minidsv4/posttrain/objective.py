"""What a run of post-training trains: a policy, and around it the loss and the batch of every step.

B batch, T tokens.
"""

from typing import Any

from torch import Tensor, nn

from minidsv4.model.model import Model
from minidsv4.train.data import Batch


class Objective(nn.Module):
    """What a run trains: a policy with a loss, and the batch of every step; to `Trainer` it is a model.

    policy  learns
    """

    def __init__(self, policy: Model):
        super().__init__()
        self.policy = policy

    def batch_at(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        raise NotImplementedError

    def loss(self, ids_BT: Tensor, document_BT: Tensor, mtp_weight: float) -> Any:
        """The losses of the batch that `batch_at` gave last, a NamedTuple with `total` and `main`."""
        raise NotImplementedError

    def told(self) -> dict:
        """What there is to log besides the losses."""
        return {}
