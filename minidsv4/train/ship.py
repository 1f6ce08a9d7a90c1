"""The small checkpoint that the package ships, and how a finished run becomes it. `python -m minidsv4 ship`."""

import argparse
from importlib import resources
from pathlib import Path

from minidsv4 import options
from minidsv4.checkpoint import load, save
from minidsv4.files import atomic_folder
from minidsv4.lowbit.released import in_precision
from minidsv4.model.model import Model
from minidsv4.train.tokenizer import Tokenizer

SHIPPED = Path(str(resources.files("minidsv4"))) / "assets" / "mini"
SHIPPED_CHAT = SHIPPED.with_name("chat")  # the post-trained model, where the package has one
POST_TRAINED = SHIPPED.with_name("specialists")  # what the chat model was made of
SPECIALISTS = ("base", "sum", "run")
TOKENIZER = "tokenizer.json"
FILES = ("config.json", "model.safetensors", TOKENIZER)
LIMIT = 12_000_000  # bytes of all files together


def load_pretrained(precision: str = "fp32", name: str = "mini") -> Model:
    """The small V4 that the package ships, trained on Python source and generated programs; needs no network.

    Its tokenizer is `pretrained_tokenizer()`. It is stored as released: routed experts in MXFP4, which it was trained
    for, other matrices in FP8, the rest in BF16 and float32; "fp32" holds these numbers and rounds no further.

    precision  "fp32", "bf16", or "released": activations in FP8, index queries and keys in MXFP4, for inference
    name       "mini"; or "chat", a smaller post-trained model, and "chat-base", "chat-sum", "chat-run", of which it was
               made, all four stored in BF16
    returns    a model in float32, or in bfloat16 with islands of float32
    raises     ValueError where this copy of the package came without it, and for another precision or name
    """
    return in_precision(load(_shipped(name)), precision)


def pretrained_tokenizer(name: str = "mini") -> Tokenizer:
    """The tokenizer of `load_pretrained(name=name)`: `encode(text)` gives ids, `decode(ids)` the text.

    raises  ValueError where this copy of the package came without it, and for another name
    """
    return Tokenizer.load(_shipped(name) / TOKENIZER)


def _shipped(name: str) -> Path:
    """The folder of a shipped model, once its files are there."""
    folders = {"mini": SHIPPED, "chat": SHIPPED_CHAT} | {f"chat-{own}": POST_TRAINED / own for own in SPECIALISTS}
    if name not in folders:
        raise ValueError(f"load_pretrained: name = {name!r} is not known; it is one of {', '.join(folders)}")
    missing = [file for file in FILES if not (folders[name] / file).is_file()]
    if missing:
        place = name.replace("chat-", f"{POST_TRAINED.name}/")
        raise ValueError(
            f"load_pretrained: this copy of minidsv4 came without assets/{place}/{missing[0]}; install it again, "
            "or train a model with `python -m minidsv4 tour`"
        )
    return folders[name]


def ship(run: str | Path, folder: str | Path, precision: str = "fp8") -> dict[str, int]:
    """Turn the folder of a finished run into one to be shipped: narrow matrices; `FILES` and their checksums.

    run        holds a model and its tokenizer.json
    folder     gets the files once all are whole and small enough; other files in it are left alone
    precision  "fp8", or "released" for experts in FP4, which the run had better be trained for
    returns    bytes of each file
    raises     ValueError above `LIMIT` bytes, or where the run is not whole; OSError where nothing can be written
    """
    model, tokenizer = load(run), Tokenizer.load(Path(run) / TOKENIZER)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as scratch:
        tokenizer.save(scratch / TOKENIZER)  # first, so that the checksums cover it
        save(model, scratch, precision=precision)
        sizes = {path.name: path.stat().st_size for path in sorted(scratch.iterdir())}
        if sum(sizes.values()) > LIMIT:
            raise ValueError(f"ship: {sum(sizes.values()):,} bytes are too many; at most {LIMIT:,} are shipped")
    return sizes


# --- the command ---


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 ship`."""
    parser.add_argument("finished", type=options.folder, help="folder of a finished run, as `train` leaves it")
    parser.add_argument("--out", type=options.folder, default=str(SHIPPED), help="folder to fill; the package's own")
    says = "matrices in FP8, or as released, with experts in FP4"
    parser.add_argument("--precision", choices=("fp8", "released"), default="fp8", help=says)


def main(arguments: argparse.Namespace) -> int:
    """Make the files, and say how large they are."""
    sizes = ship(arguments.finished, arguments.out, arguments.precision)
    for name, size in sizes.items():
        print(f"{size:>12,} bytes  {name}")
    print(f"{sum(sizes.values()):>12,} bytes of at most {LIMIT:,}")
    return 0
