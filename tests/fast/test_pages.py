"""With its pages kept, a process takes no fresh memory in the steady state, and gives it back on request."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minidsv4.fast import pages

STEADY = """
import resource
import sys
import torch
import minidsv4 as v4
from minidsv4.bench.implementations import random_ids
from minidsv4.fast import pages

torch.manual_seed(0)
config = v4.Config.mini().replace(num_hidden_layers=3, compress_ratios=(0, 4, 32, 0))  # a layer of each kind, and MTP
model = v4.Model(config)
cache, ids_BT = model.new_cache(), random_ids(model.config, (1, 1024))
model.prefill(ids_BT, cache)


@torch.no_grad()
def decode():
    model(ids_BT[:, :1], cache=cache)


def prefill():
    model.prefill(ids_BT, model.new_cache())


def train():
    model.zero_grad(set_to_none=True)
    model.loss(ids_BT.view(2, 512)).total.backward()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(rounds):
    for work in (prefill, train, decode):
        for _ in range(rounds):
            work()
        taken = []
        for _ in range(rounds):
            before = faults()
            work()
            taken.append(faults() - before)
        print(work.__name__, min(taken))  # what else the machine does takes pages away, too


if sys.argv[1] == "kept":
    assert pages.keep_pages()
    measure(4)
else:
    measure(1)
"""
MEGABYTE = 256  # pages
# By itself glibc keeps a prompt's pages on some machines. Told this, it gives each large tensor back, on any, until it
# is told otherwise.
FRESH = {"MALLOC_MMAP_THRESHOLD_": "131072"}


def fresh_pages(way):
    """The fewest pages that a prompt, a training step and a decoding step take anew, after a few of each."""
    command = [sys.executable, "-c", STEADY, way]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | FRESH)
    taken = (line.split() for line in done.stdout.splitlines())
    return {work: int(number) for work, number in taken}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted and kept by glibc")
def test_the_steady_state_takes_no_megabyte_of_fresh_pages_where_they_are_kept():
    kept, fresh = fresh_pages("kept"), fresh_pages("fresh")
    assert set(kept) == {"prefill", "train", "decode"}
    assert max(kept.values()) < MEGABYTE, kept
    assert min(fresh["prefill"], fresh["train"]) > 8 * MEGABYTE, fresh


LARGE = """
import torch
from minidsv4.fast import pages

assert pages.keep_pages()
tensor = torch.ones(5_000_000)
held = [line.split() for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages:")]
print(sum(int(kilobytes) for _, kilobytes, _ in held) / 1e3)
"""
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.slow
@pytest.mark.skipif(not THP.exists() or "[never]" in THP.read_text(), reason="this kernel has no large pages")
def test_what_is_kept_lies_in_large_pages():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 15  # of 20 MB


MIXED = """
import random, sys, threading
import torch
import minidsv4 as v4
from minidsv4.bench.implementations import random_ids
from minidsv4.fast import pages

pages.keep_pages()
models = [v4.Model(v4.Config.tiny()) for _ in range(2)]


def call(draw, model):
    cache = model.new_cache()
    model.prefill(random_ids(model.config, (1, draw.randint(1, 150))), cache, chunk=draw.choice([64, 2048]))
    with torch.no_grad():
        for _ in range(2):
            model(random_ids(model.config, (1, 1)), cache=cache)
    if draw.random() < 0.3:
        model.zero_grad(set_to_none=True)
        model.loss(random_ids(model.config, (2, draw.randint(3, 80)))).total.backward()


def calls(seed, number):
    draw = random.Random(seed)
    for _ in range(number):
        call(draw, models[seed % 2])


def megabytes(number, seed):
    threads = [threading.Thread(target=calls, args=(seed + lane, number // 2)) for lane in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pages.give_back()
    held = int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
    pages.keep_pages()
    return held


print(megabytes(100, 0), megabytes(int(sys.argv[1]) - 100, 2))
"""
GROWN = 1.05  # threads have heaps of their own, which differ by some pages


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_mixed_calls_in_two_threads_hold_at_their_end_what_they_held_after_100():
    done = subprocess.run([sys.executable, "-c", MIXED, "200"], capture_output=True, text=True, check=True)
    early, late = map(float, done.stdout.split())
    assert late < GROWN * early, (early, late)


def test_of_nested_keepers_only_the_last_gives_back(monkeypatch):
    told = []
    monkeypatch.setattr(pages, "keep_pages", lambda: told.append("keep"))
    monkeypatch.setattr(pages, "give_back", lambda: told.append("give back"))
    with pages.kept_pages():
        with pages.kept_pages():
            pass
        assert told == ["keep", "keep"]
    with pages.kept_pages():
        pass
    assert told == ["keep", "keep", "give back", "keep", "give back"]
