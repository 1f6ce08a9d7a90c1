"""What thinking buys: replies whose thinking is cut after so many characters, and the answers that follow.

A model that thinks decides itself when to stop. Here somebody else does: `</think>` is written for it, and it has to
answer from what stands there. Nothing is trained.
"""

from collections.abc import Sequence

from minidsv4.model.model import Model
from minidsv4.posttrain.tasks import Problem, verdict
from minidsv4.posttrain.writer import Writer
from minidsv4.serve.conversation.markers import END_THINK
from minidsv4.train.tokenizer import Tokenizer

N_ANSWER = 2  # tokens: a digit, and the end of the reply


def cut_thought(text: str, budget: int) -> str:
    """The thinking of a reply, at most so many characters of it, and the marker that ends thinking.

    raises  ValueError for a budget below 0
    """
    if budget < 0:
        raise ValueError(f"budget = {budget} characters of thinking cannot be; it is a whole number from 0")
    return text.partition(END_THINK)[0][:budget] + END_THINK


def right_by_budget(
    model: Model, tokenizer: Tokenizer, given: Sequence[Problem], budgets: Sequence[int], n_tokens: int, write: Writer
) -> list[float]:
    """Share of right answers at each budget, all tokens the likeliest ones.

    given     problems of modes that think
    budgets   characters of thinking, each from 0
    n_tokens  most of a reply that is not cut
    """
    prompts = [tokenizer.encode_marked(problem.prompt()) for problem in given]
    replies = write(model, prompts, n_tokens, range(len(given)), temperature=0.0)
    texts = [tokenizer.decode_marked(reply) for reply in replies]
    cut = [cut_thought(text, budget) for budget in budgets for text in texts]
    opened = [prompt + tokenizer.encode_marked(text) for prompt, text in zip(prompts * len(budgets), cut)]
    answers = write(model, opened, N_ANSWER, range(len(opened)), temperature=0.0)
    whole = [text + tokenizer.decode_marked(answer) for text, answer in zip(cut, answers)]
    right = [verdict(problem, text).right for problem, text in zip([*given] * len(budgets), whole)]
    return [sum(right[start : start + len(given)]) / len(given) for start in range(0, len(right), len(given))]
