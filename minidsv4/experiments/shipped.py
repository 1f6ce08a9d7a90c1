"""What the shipped model does: bits per byte, completions that parse, drafts that are kept, what its indexers catch.

    python -m minidsv4.experiments.shipped  measure it on this Python's source, keep it in assets/ (10 CPU minutes)

One model, one seed of sampling, float32. The plain GPT beside it was trained and measured once; its row stays as it is.
"""

import argparse
import ast
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from minidsv4 import options
from minidsv4.checkpoint import load
from minidsv4.model.model import Model
from minidsv4.serve.generation import generate
from minidsv4.serve.speculate import Speculation
from minidsv4.train import indexer
from minidsv4.train.loop import bits_per_byte
from minidsv4.train.plan import Plan
from minidsv4.train.pretrain import Texts
from minidsv4.train.ship import SHIPPED, TOKENIZER
from minidsv4.train.tokenizer import Tokenizer

FILE = Path(__file__).resolve().parents[1] / "assets" / "mini.measured.json"
LENGTH = 512  # tokens of the rows that bits per byte are counted in: the longest of the run
PROMPTS, OF_A_FILE = 100, 5  # of each kind; functions of one file at most
WRITTEN, TEMPERATURE = 80, 0.2  # tokens of a completion
DRAFTED_TEXTS, DRAFTED = 20, 100  # texts of each kind, tokens of one
READ = 1024  # tokens of source that the indexers choose in


# ---- prompts ----


def first_lines(documents: Iterable[str]) -> list[str]:
    """The first line of each program, `PROMPTS` of them."""
    return [text.splitlines(keepends=True)[0] for text in islice(documents, PROMPTS)]


def cut_functions(sources: Iterable[str]) -> list[str]:
    """The first half of each function's lines, moved to the margin: `PROMPTS` functions, a few of each file."""
    halves = (half for source in sources for half in islice(_halves(source), OF_A_FILE))
    return list(islice(halves, PROMPTS))


def _halves(source: str) -> Iterator[str]:
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 3:
            middle = (node.lineno + node.end_lineno) // 2
            yield textwrap.dedent("".join(lines[node.lineno - 1 : middle]))


# ---- measured ----


def completed(model: Model, tokenizer: Tokenizer, prompt: str, seed: int) -> str:
    """A prompt and what is written after it: to the end, or as far as lines are whole."""
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    written = generate(model, ids, WRITTEN, TEMPERATURE, seed=seed, speculate=2, stop=tokenizer.eos_id)
    text = prompt + tokenizer.decode(written)
    return text if written[-1] == tokenizer.eos_id else text[: text.rfind("\n") + 1]


def parses(text: str) -> bool:
    """Whether a text is Python."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def drafting(model: Model, tokenizer: Tokenizer, prompts: Sequence[str], depth: int) -> str:
    """What drafts of a depth gain at temperature 0, in words."""
    counts, n_tokens = Speculation(depth), 0
    for prompt in prompts:
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        n_tokens += len(generate(model, ids, DRAFTED, temperature=0, speculate=counts))
    kept = ", ".join(f"{n / counts.rounds:.0%}" for n in counts.kept)
    return f"{n_tokens} tokens, {counts.passes} passes: {counts.tokens_per_pass:.2f} tokens a pass; drafts kept: {kept}"


def caught(model: Model, ids_BT: Tensor) -> list[dict[str, float]]:
    """The attention that each choice of entries catches, layer by layer, and the indexer's share of the best ones."""
    found = []
    for layer in indexer.recall(model, ids_BT):
        found.append({choice: layer[choice].mass for choice in ("random", "recent", "indexer", "oracle")})
        found[-1]["k best"] = layer["indexer"].best
    return found


def measured(model: Model, tokenizer: Tokenizer, texts: Texts) -> dict[str, dict | list]:
    """All of it, on text that the model has not read: a dictionary as `FILE` has it, without the GPT."""
    functions = cut_functions(file.text for file in texts.corpus.held_out)
    prompts = {"programs": first_lines(texts.held_out["programs"]), "source": functions}
    bits = {kind: bits_per_byte(model, tokenizer, held, LENGTH) for kind, held in texts.held_out.items()}
    whole, drafts = {}, {}
    for kind, starts in prompts.items():
        whole[kind] = sum(parses(completed(model, tokenizer, start, seed)) for seed, start in enumerate(starts))
        for depth in (1, 2):
            drafts[f"{kind}, depth {depth}"] = drafting(model, tokenizer, starts[:DRAFTED_TEXTS], depth)
    ids_BT = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("".join(texts.held_out["source"]))][:READ]])
    return {
        "bits per byte, unseen": {"V4": bits},
        f"completions that parse, of {PROMPTS}": whole,
        "drafts": drafts,
        "attention caught by the picks, a CSA layer each": caught(model, ids_BT),
    }


def main() -> None:
    """Measure a model, and keep what was found, to three digits, beside the GPT's row."""
    parser = argparse.ArgumentParser(prog="python -m minidsv4.experiments.shipped", description="Measure a model.")
    parser.add_argument("--model", type=options.folder, default=str(SHIPPED), help="a folder with the run's tokenizer")
    parser.add_argument("--out", default=str(FILE), help="the file that is renewed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder, out = Path(arguments.model), Path(arguments.out)
    found = measured(load(folder), Tokenizer.load(folder / TOKENIZER), Texts(Plan.read("mini")))
    before = json.loads(FILE.read_text(encoding="utf-8"))
    found["bits per byte, unseen"]["GPT"] = before["bits per byte, unseen"]["GPT"]
    found = json.loads(json.dumps(before | found), parse_float=lambda digits: round(float(digits), 3))
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
