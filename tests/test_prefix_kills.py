"""Writers and readers of one store are killed at random moments: nothing is lost, half there, or of another text."""

import functools
import os
import random
import time
from pathlib import Path

import pytest
import torch
from forks import Fork
from small import EXACT, TINY, off, small_model, token_ids

import minidsv4 as v4
from minidsv4.serve.prefix_files import followed_file
from minidsv4.serve.prefix_store import PrefixStore

CONFIG = TINY.replace(
    num_hidden_layers=2,
    compress_ratios=(6, 3, 0),
    layer_types=(v4.LayerKind.HCA, v4.LayerKind.CSA, v4.LayerKind.WINDOW),
    sliding_window=4,
    hidden_size=10,
    num_attention_heads=2,
    o_groups=1,
    o_lora_rank=6,
    q_lora_rank=8,
    moe_intermediate_size=5,
    hc_mult=2,
)
N_TOKENS = 40  # 6 blocks of 6 and 4 over
N_TEXTS = 1000  # of a server: more than it serves before it is killed, however long the other takes to begin
WAYS = [("zero", None), ("periodic", 12), ("full", None)]


def random_text(seed):
    """A text that shares its beginning, of a random length, with others."""
    draw = random.Random(seed)
    shared = draw.randrange(N_TOKENS)
    start, rest = token_ids(1, N_TOKENS, seed=draw.randrange(3)), token_ids(1, N_TOKENS, seed=1000 + seed)
    return torch.cat([start[:, :shared], rest[:, shared:]], dim=1)


@functools.cache
def model():
    return small_model(CONFIG).requires_grad_(False)


def opened(folder, number, limit):
    strategy, every = WAYS[number % len(WAYS)]
    return PrefixStore(folder, model(), strategy, limit=limit, every=every)


def serve(folder, log, numbers, limit):
    """What a server does, one text after the other: a line in the log for each, once it is served and stored."""
    torch.set_num_threads(1)
    with open(log, "a", buffering=1, encoding="utf-8") as file:
        store = opened(folder, numbers[0], limit)
        print("begun", file=file)
        for number in numbers:
            ids_BT, cache = random_text(number), model().new_cache()
            logits = store.prefill(ids_BT, cache)
            right = off(logits, model()(ids_BT)[:, -1]) < EXACT
            print("served" if right else "wrong", number, file=file)


def kill_while_serving(folder, draw, n_kills, limit, pause):
    """Two servers at a time in one folder, killed after some texts; the numbers of the texts served."""
    served, texts = [], draw.sample(range(1_000_000), N_TEXTS * n_kills)
    for n in range(0, n_kills, 2):
        logs = [Path(f"{folder}-{n}-{which}.log") for which in range(2)]
        servers = []
        for which, log in enumerate(logs):
            numbers = [
                *draw.sample(served, min(2, len(served))),
                *texts[N_TEXTS * (n + which) : N_TEXTS * (n + which + 1)],
            ]
            arguments = str(folder), str(log), numbers, limit
            servers.append(Fork(serve, arguments, os.environ, folder.parent, [os.devnull, f"{log}.errors"]))
        moment = draw.randrange(1, 7)  # texts; and a pause, so that the kill meets a text in the middle
        while not all(lines(log) for log in logs) or sum(map(lines, logs)) < len(logs) + moment:
            assert all(server.poll() is None for server in servers), [Path(f"{log}.errors").read_text() for log in logs]
            time.sleep(0.001)
        time.sleep(draw.uniform(0, pause))
        for server in servers:
            server.send_signal(9)
            assert server.wait() == -9
        for log in logs:
            words = [line.split() for line in log.read_text().splitlines()[1:]]
            assert all(word[0] == "served" for word in words), words
            served += [int(word[1]) for word in words]
        check(folder, draw.sample(served, min(3, len(served))), limit)
    return served


def lines(log):
    """Whole lines of a log."""
    return log.read_text().count("\n") if log.exists() else 0


def check(folder, numbers, limit):
    """Nothing that was served is lost, if there is no limit; no chain has a hole, and each answer is right."""
    store = opened(folder, 0, limit)
    names = store.files.found()
    first = {name for name in names if store._root in name and name.endswith("entries")}
    assert set(followed_file(names)) == set(names) - first
    for number in numbers:
        ids_BT = random_text(number)
        cache, n = store.longest(ids_BT[0])
        assert limit or n == 36
        assert off(model().prefill(ids_BT[:, n:], cache), model()(ids_BT)[:, -1]) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 40_000])
def test_killed_writers_and_readers_lose_nothing_and_leave_nothing_half_written(limit, tmp_path):
    draw, n_kills = random.Random(5), int(os.environ.get("PREFIX_KILLS", 12))
    folder = tmp_path / "store"
    folder.mkdir()
    served = kill_while_serving(folder, draw, n_kills, limit, pause=0.03)
    assert len(served) >= n_kills // 2  # each pair of servers serves one at least
    check(folder, served[-200:], limit)
    store = opened(folder, 0, limit)
    store.prefill(random_text(-1), model().new_cache())
    assert {path.name for path in folder.iterdir()} == set(store.files.found())  # and nothing temporary
    assert limit is None or sum(store.report().values()) <= limit
