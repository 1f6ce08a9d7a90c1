"""The bill of one model at one length, as a dataclass, as a table to read and as JSON; `python -m minidsv4 bill`."""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from minidsv4.config import Config
from minidsv4.cost import disk, flops, memory, price, roofline
from minidsv4.cost.baselines import V32, gqa8
from minidsv4.cost.hardware import DEVICES
from minidsv4.cost.parameters import Count, checkpoint_bytes, parameters, total, weights
from minidsv4.options import readable

MODELS = {"flash": Config.flash, "pro": Config.pro, "v3.2": V32}
NAMES = {"flash": "V4-Flash", "pro": "V4-Pro", "v3.2": "V3.2"}
LONGEST = 2**24  # tokens, 16 times what the models are made for: a prompt's FLOPs are summed token by token
TRAINED_AT = 4096  # tokens a sequence, where both models begin; the report does not say how much was trained longer


@dataclass(frozen=True)
class Bill:
    """What a model costs when a sequence holds `n_tokens`; bytes, FLOPs, seconds and US dollars.

    parameters        by part; `main` sums them without the MTP block, `with_mtp` with it
    decode            raw FLOPs of one new token, by kind; `decode_fp8` is their FP8-equivalent
    prefill_fp8       FP8-equivalent FLOPs of reading all tokens
    training          raw FLOPs of training on one token, in sequences of 4,096
    cache             bytes of one sequence in the production formats, by kind
    tail_bytes        raw values that wait for their window, in FP32 as the released code reserves them; V4 only
    read_bytes        bytes of the cache that one new token reads
    v32_flops_ratio   FP8-equivalent FLOPs of one new token in V3.2 over those here
    v32_cache_ratio   bytes of V3.2's cache over those here
    gqa8_share        bytes of this cache over those of GQA8 in BF16 at the same depth
    steps             one new token of one sequence on each device, at best
    touched           bytes of stored weights that one new token touches, which a model on disk reads
    list_prices       dollars for reading the tokens and writing 1,000, by the date of the price; empty if not sold
    compute_price     dollars for the same FLOPs on rented H800s at peak rate: a floor, nothing else is in it
    """

    name: str
    n_tokens: int
    parameters: dict[str, Count]
    main: Count
    with_mtp: int
    checkpoint_bytes: int
    decode: dict[str, float]
    decode_fp8: float
    prefill_fp8: float
    training: float
    cache: dict[str, int]
    cache_bytes: int
    tail_bytes: int
    read_bytes: int
    v32_flops_ratio: float
    v32_cache_ratio: float
    gqa8_share: float
    steps: list[roofline.Step]
    touched: disk.Touched
    list_prices: dict[str, float]
    compute_price: float


def bill(config: Config | V32, n_tokens: int, name: str = "") -> Bill:
    """The bill of a model at one length.

    config    a Config, or V32()
    n_tokens  tokens that the sequence holds, from 1 to LONGEST
    name      what the table calls it; empty is the released name, or "a V4 model"
    raises    ValueError for another model or another length
    """
    _check_length(n_tokens)
    one = flops.decode(config, n_tokens)
    prompt = flops.prefill(config, n_tokens)
    name = name or released_name(config)
    return Bill(
        name=name,
        n_tokens=n_tokens,
        **_weights_of(config),
        decode={kind: float(amount) for kind, amount in one.items() if amount},
        decode_fp8=float(flops.weighted(one)),
        prefill_fp8=flops.weighted(prompt),
        training=flops.training(config, 1, TRAINED_AT),
        **_cache_of(config, n_tokens),
        v32_flops_ratio=float(flops.weighted(flops.decode(V32(), n_tokens)) / flops.weighted(one)),
        steps=[roofline.decode_step(config, n_tokens, device) for device in DEVICES.values()],
        touched=disk.touched(config),
        list_prices=list_prices(name, n_tokens),
        compute_price=compute_price(prompt, one),
    )


def _check_length(n_tokens: int) -> None:
    """Refuse what is no number of tokens, and lengths whose sum over tokens would not fit into memory."""
    if not isinstance(n_tokens, int) or not 1 <= n_tokens <= LONGEST:
        raise ValueError(f"bill: n_tokens = {n_tokens!r} is no length; it counts tokens, from 1 to {LONGEST:,}")


def _weights_of(config: Config | V32) -> dict:
    """The fields of a Bill that count parameters."""
    rows = weights(config)
    counts = parameters(rows)
    with_mtp = total(counts, mtp=True).total
    stored = checkpoint_bytes(rows)
    return {"parameters": counts, "main": total(counts), "with_mtp": with_mtp, "checkpoint_bytes": stored}


def _cache_of(config: Config | V32, n_tokens: int) -> dict:
    """The fields of a Bill that count bytes of the cache, and compare them."""
    held = {kind: int(amount) for kind, amount in memory.cache(config, n_tokens).items()}
    n_bytes = sum(held.values())
    return {
        "cache": held,
        "cache_bytes": n_bytes,
        "tail_bytes": memory.tail_room(config) if isinstance(config, Config) else 0,
        "read_bytes": int(memory.read_bytes(config, n_tokens)),
        "v32_cache_ratio": float(sum(memory.cache(V32(), n_tokens).values()) / n_bytes),
        "gqa8_share": n_bytes / gqa8(config).cache_bytes(n_tokens),
    }


def released_name(config: Config | V32) -> str:
    """The released model that has exactly these sizes."""
    return next((NAMES[key] for key, make in MODELS.items() if make() == config), "a V4 model")


def list_prices(name: str, n_tokens: int, answer: int = 1000) -> dict[str, float]:
    """Dollars for a question about so many tokens, by the date of the price; none where the model is not sold."""
    asked = price.question(n_tokens, answer)
    return {date: price.cost(sold[name], asked) for date, sold in price.PRICES.items() if name in sold}


def compute_price(prompt: dict[str, float], one: dict[str, float], answer: int = 1000) -> float:
    """Dollars for the multiplications alone, on rented H800s: a prompt, then `answer` times one token."""
    h800 = DEVICES["H800"]
    return price.rented(roofline.seconds(prompt, h800) + answer * roofline.seconds(one, h800))


# --- the table ---


def table(bill: Bill) -> str:
    """The bill as text, a block a subject."""
    title = f"{bill.name} at {bill.n_tokens:,} tokens"
    return "\n\n".join([title, _parameters(bill), _flops(bill), _bytes(bill), _time(bill), _disk(bill), _dollars(bill)])


def aligned(heads: tuple[str, ...], rows: list[tuple]) -> str:
    """Columns under their heads, the first one left, the others right."""
    cells = [heads, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    padded = [[f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)] for row in cells]
    return "\n".join("  " + "  ".join(row).rstrip() for row in padded)


def _parameters(bill: Bill) -> str:
    counts = [*bill.parameters.items(), ("all but MTP", bill.main)]
    rows = [(part, f"{count.total / 1e9:.3f}", f"{count.active / 1e9:.3f}") for part, count in counts]
    rows.append(("all", f"{bill.with_mtp / 1e9:.3f}", ""))
    return aligned(("parameters, billions", "total", "active"), rows) + (
        f"\n  checkpoint in the released formats: {bill.checkpoint_bytes / 1e9:,.1f} GB"
    )


def _flops(bill: Bill) -> str:
    one = [(kind, amount, flops.EQUIVALENT[kind] * amount) for kind, amount in bill.decode.items()]
    one.append(("all", sum(bill.decode.values()), bill.decode_fp8))
    rows = [(kind, f"{raw / 1e9:,.2f}", f"{fp8 / 1e9:,.2f}") for kind, raw, fp8 in one]
    return aligned(("one new token, GFLOP", "raw", "FP8-equivalent"), rows) + (
        f"\n  V3.2 needs {bill.v32_flops_ratio:.4g} times as much"
        f"\n  reading all tokens: {bill.prefill_fp8 / 1e15:,.3g} PFLOP, FP8-equivalent"
        f"\n  training: {bill.training / 1e9:,.1f} GFLOP a token in sequences of {TRAINED_AT:,}"
    )


def _bytes(bill: Bill) -> str:
    rows = [(kind, f"{amount / 1e6:,.2f}") for kind, amount in [*bill.cache.items(), ("all", bill.cache_bytes)]]
    return aligned(("cache of one sequence, MB", ""), rows) + (
        f"\n  raw values that wait for their window: {bill.tail_bytes / 1e6:,.2f} MB at most"
        f"\n  one new token reads {bill.read_bytes / 1e6:,.1f} MB of it"
        f"\n  V3.2 keeps {bill.v32_cache_ratio:.4g} times as much; GQA8 in BF16 {1 / bill.gqa8_share:.3g} times as much"
    )


def _time(bill: Bill) -> str:
    heads = ("one new token at best, one sequence", "devices", "ms", "tokens/s", "waits for")
    rows = [
        (step.device.name, step.n_devices, f"{1e3 * step.seconds:.3g}", f"{step.tokens_per_second:.0f}", step.bound)
        for step in bill.steps
    ]
    return aligned(heads, rows)


def _disk(bill: Bill) -> str:
    touched = bill.touched
    cold, warm = disk.seconds(touched.total), disk.seconds(touched.total - touched.dense)
    rows = [(name, f"{cold[name]:.3g}", f"{warm[name]:.3g}", f"{60 / warm[name]:,.3g}") for name in cold]
    heads = ("weights on disk, one new token at best", "s", "s, dense part kept", "tokens/min")
    return aligned(heads, rows) + (
        f"\n  it touches {readable(touched.total)} of them: {readable(touched.dense)} of the dense part, "
        f"{readable(touched.experts)} of experts"
    )


def _dollars(bill: Bill) -> str:
    rows = [(f"list price of {date}", f"${dollars:,.4f}") for date, dollars in bill.list_prices.items()]
    rows = rows or [("list price", "none")]
    rows.append(("its FLOPs alone, on rented H800s at peak", f"${bill.compute_price:,.4f}"))
    lines = [aligned(("reading all tokens and writing 1,000", ""), rows)]
    if bill.list_prices:
        lines += [f"  {sentence}" for sentence in price.SINCE]
    return "\n".join(lines)


def to_json(bill: Bill) -> str:
    """The bill as JSON; devices by name, every time in seconds."""
    steps = [
        {
            "device": step.device.name,
            "n_devices": step.n_devices,
            "seconds": step.seconds,
            "tokens_per_second": step.tokens_per_second,
            "bound": step.bound,
        }
        for step in bill.steps
    ]
    fields = {field.name: getattr(bill, field.name) for field in dataclasses.fields(bill)}
    counts = {part: dataclasses.asdict(count) for part, count in bill.parameters.items()}
    touched = dataclasses.asdict(bill.touched) | {"seconds": disk.seconds(bill.touched.total)}
    plain = {"parameters": counts, "main": dataclasses.asdict(bill.main), "steps": steps, "touched": touched}
    return json.dumps(fields | plain, indent=2)


# --- the command ---


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 bill`."""
    parser.add_argument("--model", default="flash", help="flash, pro, v3.2, or a config.json or its folder")
    parser.add_argument("--tokens", type=length, default=2**20, help="length of the sequence, such as 131072 or 128K")
    parser.add_argument("--json", action="store_true", help="print JSON")


def length(text: str) -> int:
    """'131072', '128K' and '1M' as a number of tokens; K and M are 2^10 and 2^20."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in ("K", "M") else (text, "")
    wrong = f"{text!r} is no length; give tokens from 1 to {LONGEST:,}, such as 131072, 128K or 1M"
    if not digits.isdecimal() or len(digits) > len(str(LONGEST)):
        raise argparse.ArgumentTypeError(wrong)
    n_tokens = int(digits) * {"": 1, "K": 2**10, "M": 2**20}[unit]
    if not 1 <= n_tokens <= LONGEST:
        raise argparse.ArgumentTypeError(wrong)
    return n_tokens


def named_model(name: str) -> Config | V32:
    """flash, pro, v3.2, or the model of a config.json."""
    if name in MODELS:
        return MODELS[name]()
    if not Path(name).exists():
        raise ValueError(f"bill: --model {name} is none of {', '.join(MODELS)}, nor a config.json or its folder")
    return Config.from_json(name)


def main(args: argparse.Namespace) -> int:
    """Print the bill that the command asks for.

    args    model, tokens and json, as `add_options` reads them
    raises  ValueError where the model is no name and no readable config.json
    """
    made = bill(named_model(args.model), args.tokens)
    print(to_json(made) if args.json else table(made))
    return 0
