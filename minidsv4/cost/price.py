"""Prices of V4 and of the models that it is compared with, by date, and what a workload costs at them.

US dollars per million tokens. Sources: the vendors' price pages of the month that is named; those of other vendors are
rounded ("about"). DeepSeek's cache-hit prices of April are the ones after the cut of 2026-04-26. In June the discount
that had brought Pro to a quarter of its price was permanent.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens: input read anew, input found in the cache, output.

    cached  None where our source has no such price: then a cached token costs as much as a new one
    """

    name: str
    new: float
    output: float
    cached: float | None = None


APRIL = {
    price.name: price
    for price in (
        Price("V4-Flash", 0.14, 0.28, 0.0028),
        Price("V4-Pro", 1.74, 3.48, 0.0145),
        Price("Gemini-3.1-Pro", 2.00, 12.00),
        Price("GPT-5.4", 2.50, 15.00),
        Price("Claude-Sonnet-4.6", 3.00, 15.00),
    )
}
JUNE = {
    price.name: price
    for price in (
        Price("V4-Flash", 0.14, 0.28, 0.0028),
        Price("V4-Pro", 0.435, 0.87, 0.003625),
    )
}
PRICES = {"April 2026": APRIL, "June 2026": JUNE}
SINCE = (
    "From the summer of 2026 on prices double in Beijing's peak hours, 9-12 and 14-18.",
    "The names have been served by successors since, at prices of their own.",
)
RENT = 2.0  # US dollars for an H800 hour: the DeepSeek-V3 report's own assumption (arXiv 2412.19437, table 1)


@dataclass(frozen=True)
class Workload:
    """Tokens that are billed: read anew, found in the prefix cache, written."""

    name: str
    new: int
    cached: int
    output: int


def cost(price: Price, work: Workload, hits: bool = True) -> float:
    """US dollars of a workload; without hits every input token is paid as new."""
    cached = price.cached if hits and price.cached is not None else price.new
    return (work.new * price.new + work.cached * cached + work.output * price.output) / 1e6


def question(n_tokens: int, answer: int = 2_000) -> Workload:
    """One question about a context of so many tokens."""
    return Workload(f"one question about {n_tokens:,} tokens", n_tokens, 0, answer)


def agent(turns: int = 200, start: int = 10_000, seen: int = 1_500, written: int = 500) -> Workload:
    """An agent's run: the first turn reads a prompt, each later one all that was said before and a tool's result.

    start    tokens of the first prompt
    seen     tokens that a tool returns before each turn but the first
    written  tokens that the model writes in each turn; they belong to the next turn's context
    """
    known = [start + written + turn * (seen + written) for turn in range(turns - 1)]
    return Workload(f"an agent run of {turns} turns", start + (turns - 1) * seen, sum(known), turns * written)


def rented(seconds: float, rent: float = RENT) -> float:
    """US dollars of so many device seconds."""
    return seconds / 3600 * rent
