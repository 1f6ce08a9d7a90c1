"""Inputs of the assignment problems/4_prefixes."""

import zlib

from minidsv4.course.tasks import Task


def drawn_strategy(generator):
    """A prefix and a strategy, and the tokens by cases."""
    found = 128 * int(generator.integers(0, 60))
    layers = int(generator.integers(2, 61))
    every = 128 * int(generator.integers(1, 20))
    strategy = str(generator.choice(["full", "periodic", "zero"]))
    cone = 128 + (layers - 1) * 127
    needed = {"full": 4, "zero": cone, "periodic": min(cone, found % every + 4)}[strategy]
    return (found, strategy, 128, layers, 4, every), min(found, needed)


def computed_again():
    """The tokens of a prefix that run once more."""
    cases = [((131072, "zero", 128, 43, 4, None), 5462), ((131072, "full", 128, 43, 4, None), 4)]
    cases += [((640, "periodic", 128, 43, 4, 256), 132), ((128, "zero", 128, 43, 4, None), 128)]
    return Task(cases, drawn_strategy)


def hits_by_time(requests, block, capacity):
    """Tokens that each request finds, with the time at which each block was last used."""
    used = {}
    found = []
    clock = 0
    for text in requests:
        keys = [tuple(text[:stop]) for stop in range(block, len(text) + 1, block)]
        known = [key in used for key in keys]
        found.append(block * (known.index(False) if False in known else len(known)))
        for key in reversed(keys):
            clock += 1
            used[key] = clock
        newest = sorted(used, key=used.get)[-capacity:]
        used = {key: used[key] for key in newest}
    return found


def drawn_requests(generator, n=14):
    """Texts of a few applications, whose users ask what they like."""
    starts = [generator.integers(0, 3, size=int(size)).tolist() for size in generator.integers(4, 12, size=3)]
    requests = []
    for which in generator.integers(0, 3, size=n):
        asked = generator.integers(0, 2, size=int(generator.integers(1, 6))).tolist()
        requests.append(starts[which] + asked)
    return requests


def drawn_store(generator):
    """Requests and the size of a store, and what each finds."""
    requests = drawn_requests(generator)
    block, capacity = int(generator.integers(2, 4)), int(generator.integers(1, 12))
    return (requests, block, capacity), hits_by_time(requests, block, capacity)


def hits():
    """The tokens that each request finds."""
    texts = [[1, 1, 2, 2, 5], [1, 1, 2, 2, 6, 6], [3, 3], [1, 1, 2, 2]]
    return Task([((texts, 2, 9), [0, 4, 0, 4]), ((texts, 2, 2), [0, 4, 0, 2])], drawn_store)


def drawn_log(generator):
    """Lines of a log of which some are torn, and the tokens of the whole ones."""
    lines = []
    tokens = {}
    for number in generator.integers(0, 3, size=12).tolist():
        token = int(generator.integers(0, 999))
        said = f"{number} {token}"
        line = f"{said} {zlib.crc32(said.encode())}"
        if generator.random() < 0.25:
            line = line[: int(generator.integers(0, len(line)))]
            if generator.random() < 0.5:
                line += "1 5 7"
        else:
            tokens.setdefault(number, []).append(token)
        lines.append(line)
    return (lines,), tokens


def recovered():
    """The texts that a log holds."""
    lines = [f"{said} {zlib.crc32(said.encode())}" for said in ("3 17", "4 9", "3 8")]
    return Task([((lines,), {3: [17, 8], 4: [9]}), (([lines[0], lines[1][:-2], lines[2]],), {3: [17, 8]})], drawn_log)


def drawn_bill(generator):
    """Lengths of prompts, hits and answers, and the dollars request by request."""
    prompts, answers = generator.integers(10, 5000, size=(2, 6)).tolist()
    found = [int(length * generator.random()) for length in prompts]
    prices = tuple(generator.uniform(0.01, 3, size=3).tolist())
    cents = 0.0
    for prompt, known, answer in zip(prompts, found, answers):
        cents += (known * prices[0] + (prompt - known) * prices[1] + answer * prices[2]) / 10_000
    return (prompts, found, answers, prices), cents / 100


def dollars():
    """What the requests cost."""
    return Task([(([1000, 1000], [0, 800], [100, 100], (0.1, 1.0, 2.0)), 0.00168)], drawn_bill)


def drawn_goal(generator):
    """Requests and a part of their tokens, and the smallest store that finds it."""
    requests = drawn_requests(generator)
    total = sum(map(len, requests))
    parts = [sum(hits_by_time(requests, 2, capacity)) / total for capacity in range(1, 41)]
    part = float(generator.uniform(0.1, 1.1)) * max(parts)
    enough = [capacity for capacity, reached in enumerate(parts, start=1) if reached >= part]
    return (requests, 2, part), min(enough, default=None)


def smallest_store():
    """The smallest store that finds enough."""
    texts = [[1, 1, 2, 2], [3, 3], [1, 1, 2, 2], [3, 3]]
    cases = [((texts, 2, 0.5), 3), ((texts, 2, 0.1), 2), ((texts, 2, 0.9), None), (([[1, 1], [1, 1]], 2, 0.5), 1)]
    return Task(cases, drawn_goal)
