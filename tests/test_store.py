"""The store of weights on disk: what stays, what goes first, what is read ahead, and whose memory is lent again."""

import threading

import pytest
import torch

from minidsv4.serve.store import Piece, Rooms, Store

DENSE = {f"dense {turn}": Piece(turn, 10, 10) for turn in range(4)}
EXPERTS = {f"expert {n}": Piece(n // 4, 10, 10, expert=True) for n in range(16)}


def store_of(budget, read=None, pieces=None):
    """A store that notes what is read, in order; each piece is its room."""
    noted = []

    def note(key, room):
        noted.append(key)
        return room if read is None else read(key, room)

    return Store(note, pieces or DENSE | EXPERTS, budget, after={3: 0}), noted


def settle(store):
    """Wait for what is being read ahead."""
    for future in list(store._coming.values()):
        future.result()


def test_a_piece_is_read_once_while_there_is_room():
    store, noted = store_of(30)
    for key in ("expert 0", "expert 1", "expert 0", "expert 2", "expert 1"):
        store.get(key)
    assert noted == ["expert 0", "expert 1", "expert 2"]
    assert (store.traffic.read, store.traffic.touched) == (30, 30)  # once a turn


def test_the_expert_that_was_not_used_for_longest_goes_first():
    store, noted = store_of(30)
    for key in ("expert 0", "expert 1", "expert 2", "expert 0", "expert 3", "expert 0", "expert 2", "expert 1"):
        store.get(key)
    assert noted == ["expert 0", "expert 1", "expert 2", "expert 3", "expert 1"]
    assert store.rooms.peak == 30


def test_experts_go_before_the_dense_part_and_of_that_what_is_needed_latest():
    store, noted = store_of(40)
    store._after = {turn: turn for turn in range(4)}  # nothing is read ahead
    for turn in range(3):
        store.begin(turn)
        store.get(f"dense {turn}")
    store.get("expert 0")
    store.get("expert 1")  # in place of expert 0
    store.begin(3)
    store.get("dense 3")  # in place of expert 1
    store.get("expert 2")  # in place of the dense part of layer 2, whose turn is the farthest away
    assert set(store._kept) == {"dense 0", "dense 1", "dense 3", "expert 2"}


def test_the_next_layer_is_read_ahead_and_after_the_last_the_first():
    store, noted = store_of(100)
    for turn in (0, 1, 3, 0, 1):
        store.begin(turn)
        settle(store)
    assert noted == ["dense 1", "dense 2", "dense 0", "dense 3"]  # the second time, 3 follows 1


def test_reading_ahead_takes_nothing_that_is_needed_sooner():
    store, noted = store_of(20)
    store.begin(0)
    settle(store)
    store.get("dense 0")
    store.ahead(["expert 1", "expert 2"])
    settle(store)
    assert noted == ["dense 1", "dense 0"] and set(store._kept) == {"dense 0", "dense 1"}


def test_what_fails_ahead_is_tried_again_when_it_is_asked_for():
    def fail(key, room):
        raise ValueError(f"{key} is gone")

    store, noted = store_of(10, fail)
    store.ahead(["expert 0"])
    for _ in range(2):
        with pytest.raises(ValueError, match="expert 0 is gone"):
            store.get("expert 0")
    store.read = lambda key, room: room
    assert store.get("expert 1").shape == (10,)


def test_a_piece_that_is_being_read_is_waited_for_and_not_read_twice():
    begun, go_on = threading.Event(), threading.Event()

    def slowly(key, room):
        begun.set()
        assert go_on.wait(10)
        return room

    store, noted = store_of(10, slowly)
    store.ahead(["expert 0"])
    assert begun.wait(10)
    threading.Timer(0.05, go_on.set).start()
    store.get("expert 0")
    store.get("expert 1")
    assert noted == ["expert 0", "expert 1"] and store.rooms.peak == 10


def test_who_holds_on_to_a_piece_gets_another_one_beyond_the_budget_and_no_standstill():
    store, _ = store_of(10)
    held = store.get("expert 0")
    held.fill_(7)
    store.get("expert 1").fill_(1)
    assert held.tolist() == [7] * 10 and store.rooms.peak == 20
    del held
    store.get("expert 2")
    store.get("expert 3")
    assert store.rooms.n_bytes == 10


def test_threads_that_ask_at_once_each_get_their_piece():
    store, _ = store_of(30, lambda key, room: room.fill_(int(key.split()[1])))
    wrong = []

    def ask(first):
        for n in range(200):
            expected = (first + 3 * n) % 16
            wrong.extend(value for value in store.get(f"expert {expected}").tolist() if value != expected)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_a_room_is_lent_again_once_no_view_stands_on_it_and_not_before():
    rooms = Rooms(limit=8)
    first = rooms.take(8)
    view = first.view(torch.float32)[1:]
    del first
    assert rooms.take(8) is None
    view.fill_(1)
    del view
    assert rooms.take(8).view(torch.float32).tolist() == [0, 1]  # the same memory


def test_a_room_of_another_size_makes_way():
    rooms = Rooms(limit=10)
    del (lent := [rooms.take(6), rooms.take(4)])[:]
    assert lent == [] and rooms.take(10).shape == (10,) and rooms.peak == 10


def test_loose_rooms_serve_smaller_requests_and_small_ones_are_given_up():
    rooms = Rooms(loose=True)
    for n_bytes in (10, 30, 20, 30, 5):
        assert rooms.take(n_bytes).shape == (n_bytes,)
    assert rooms.n_bytes == 30
