"""What sorted experts cost: as many products as experts were picked, on the tokens that picked them, nothing beyond."""

import torch
from small import normal

from minidsv4.fast.experts import experts

D, E, F = 8, 9, 5


def example(n_tokens, picked_TA):
    weights = normal(E, 2 * F, D, seed=2), normal(E, D, F, seed=3)
    return normal(n_tokens, D), picked_TA, normal(n_tokens, picked_TA.shape[1]).abs(), *weights, 0.7


class Products(torch.overrides.TorchFunctionMode):
    """Rows and columns of the left factor of every matrix product."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_an_expert_computes_the_tokens_that_picked_it_and_no_other():
    picked_TA = torch.tensor([[3, 8]] * 6 + [[8, 0]])
    with Products() as products:
        experts(*example(7, picked_TA))
    assert products.shapes == [(1, D), (1, F), (6, D), (6, F), (7, D), (7, F)]  # experts 0, 3 and 8


def test_the_gradient_keeps_gates_and_ups_and_no_copy_of_rows():
    picked_TA = normal(40, E).argsort(-1)[:, :3]
    case, kept = example(40, picked_TA), []
    for part in (case[0], *case[2:5]):
        part.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        experts(*case)
    inputs = sum(part.numel() for part in (case[0], *case[2:5]))
    assert sum(kept) == inputs + 40 * 3 + 40 * 3 * 2 * F  # order, and the raw gates and ups
