"""`python -m minidsv4 ranks`: experts over real ranks on this machine, what they send, and what waves gain.

Whole waves are the unit: one is multiplied when all of its rows are there. The report's figure 5 starts sooner, tile by
tile, and gains more from few waves; `schedule.py` has both.
"""

import argparse
import sys

from minidsv4 import options
from minidsv4.cost import schedule
from minidsv4.cost.hardware import DEVICES
from minidsv4.cost.report import MODELS, NAMES, aligned
from minidsv4.parallel import benchmark
from minidsv4.parallel.launch import RankError

CLUSTERS = {name.replace(" ", "-"): device for name, device in DEVICES.items() if device.link}
SIZES = {name: MODELS[name] for name in ("flash", "pro")}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 ranks`."""
    parser.add_argument("--ranks", type=options.count, default=2, help="processes to start")
    parser.add_argument("--waves", type=options.count, default=4, help="measure 1 to so many waves of experts")
    parser.add_argument("--device", default="B200", help=f"whose pace: {', '.join(CLUSTERS)}")
    parser.add_argument("--model", default="flash", help="whose experts: flash or pro")
    seconds = "that the products of the layer are stretched to"
    parser.add_argument("--seconds", type=options.above_0(3600), default=0.3, help=seconds)
    parser.add_argument("--rounds", type=options.whole(0), default=5, help="of measuring; with 0 nothing waits")


def main(args: argparse.Namespace) -> int:
    """Print both tables; 1 where a rank did not come to its end, which a sentence on stderr says.

    raises  ValueError, before any rank is started, for options that make no sense
    """
    check(args)
    try:
        report(args)
    except RankError as error:
        print(f"{str(error).splitlines()[0]}.", file=sys.stderr)
        return 1
    return 0


def report(args: argparse.Namespace) -> None:
    """Measure and print."""
    print(f"{args.ranks} ranks, each a process of this machine; {benchmark.E} experts, {benchmark.A} a token\n")
    print(strategies(benchmark.compare_strategies(args.ranks, min(args.waves, benchmark.E // args.ranks))))
    config, device = SIZES[args.model](), CLUSTERS[args.device]
    rho, balance = schedule.stages(config, device).rho, schedule.balance_point(config)
    print(f"\n{device.name} has {device.peak(8) / device.link:,.0f} FLOP for a byte of its link,", end=" ")
    print(f"{NAMES[args.model]} is in balance at {balance:,.0f}: transfers take {rho:.2f} times as long as products.")
    print(f"One layer at that pace, its products stretched to {1e3 * args.seconds:g} ms:\n")
    numbers = tuple(range(1, args.waves + 1))
    print(overlaps(benchmark.measure_waves(args.ranks, rho, numbers, args.seconds, args.rounds)))


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be run."""
    for name, value, known in (("device", args.device, CLUSTERS), ("model", args.model, SIZES)):
        if value not in known:
            raise ValueError(f"ranks: --{name} {value} is not known; it is one of {', '.join(known)}")
    if args.ranks == 1 or benchmark.E % args.ranks:
        divisors = [str(n) for n in range(2, benchmark.E + 1) if benchmark.E % n == 0]
        raise ValueError(
            f"ranks: --ranks {args.ranks} cannot share {benchmark.E} experts evenly; give one of {', '.join(divisors)}"
        )
    most = benchmark.E // args.ranks
    if args.waves > most:
        raise ValueError(f"ranks: --waves {args.waves}, but a rank has {most} experts; give 1 .. {most}")


def strategies(costs: list[benchmark.Cost]) -> str:
    """A row a strategy."""

    def agreement(cost: benchmark.Cost, same: bool) -> str:
        return "bit for bit" if same else f"to {cost.off:.0e}"

    rows = [
        (cost.strategy, f"{cost.sent_bytes:,.0f}", agreement(cost, cost.output), agreement(cost, cost.gradients))
        for cost in costs
    ]
    heads = ("strategy", "bytes sent a token", "output as of one process", "gradients")
    return aligned(heads, rows) + f"\n  width {benchmark.NARROW[0]}, float32, there and back, from a rank to another"


def overlaps(found: list[benchmark.Overlap]) -> str:
    """A row a number of waves, and what the columns mean."""
    rows = [
        (
            *(str(run.waves), f"{1e3 * run.expected:.0f}", f"{1e3 * run.measured:.0f}"),
            *(f"{run.expected_gain:.2f}", f"{run.measured_gain:.2f}"),
            *(f"{run.measured_gain / run.expected_gain - 1:+.0%}", f"{run.fair:.0%}", "yes" if run.equal else "no"),
        )
        for run in found
    ]
    heads = ("waves", "theory ms", "measured ms", "theory gain", "measured gain", "off", "fair rounds", "same output")
    return aligned(heads, rows) + (
        "\n  theory: the emulated chip and link alone; measured: on the wall, median of the calmer half of the rounds;"
        "\n  fair: no real product or transfer took longer than its emulated time. With less than 100% fair rounds this"
        "\n  machine is too busy with other things, and what is measured falls short of theory for that reason too"
    )
