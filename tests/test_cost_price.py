"""Dollars: the price table, and workloads that can be worked out by hand."""

import pytest

from minidsv4.cost.price import APRIL, JUNE, PRICES, SINCE, Price, Workload, agent, cost, question, rented

TABLE = {  # US dollars per million tokens in and out, April 2026
    "V4-Pro": (1.74, 3.48),
    "V4-Flash": (0.14, 0.28),
    "Gemini-3.1-Pro": (2.00, 12.00),
    "GPT-5.4": (2.50, 15.00),
    "Claude-Sonnet-4.6": (3.00, 15.00),
}


def test_the_price_table_of_april_2026():
    assert {name: (price.new, price.output) for name, price in PRICES["April 2026"].items()} == TABLE
    # The hits' launch prices of 0.028 and 0.145, cut to a tenth on 2026-04-26.
    assert {name: price.cached for name, price in APRIL.items() if price.cached is not None} == {
        "V4-Flash": 0.0028,
        "V4-Pro": 0.0145,
    }


def test_the_price_table_of_june_2026():
    assert {name: (price.cached, price.new, price.output) for name, price in PRICES["June 2026"].items()} == {
        "V4-Flash": (0.0028, 0.14, 0.28),
        "V4-Pro": (0.003625, 0.435, 0.87),
    }


def test_in_june_pro_costs_a_quarter_of_april_and_flash_what_it_cost():
    work = agent()
    assert cost(JUNE["V4-Pro"], work) == pytest.approx(cost(APRIL["V4-Pro"], work) / 4)
    assert JUNE["V4-Flash"] == APRIL["V4-Flash"]


def test_what_came_after_the_table_is_said_beside_it():
    later = " ".join(SINCE)
    for words in ("double in Beijing's peak hours, 9-12 and 14-18", "served by successors"):
        assert words in later


def test_a_workload_costs_the_sum_of_its_three_kinds_of_tokens():
    price, work = (
        Price("p", new=2.0, output=5.0, cached=0.5),
        Workload("w", new=1_000_000, cached=4_000_000, output=200_000),
    )
    assert cost(price, work) == pytest.approx(2 + 4 * 0.5 + 0.2 * 5)
    assert cost(price, work, hits=False) == pytest.approx(2 + 4 * 2 + 0.2 * 5)


def test_without_a_price_for_hits_a_cached_token_costs_as_much_as_a_new_one():
    work = agent()
    assert cost(APRIL["GPT-5.4"], work) == cost(APRIL["GPT-5.4"], work, hits=False)
    assert cost(APRIL["V4-Pro"], work) < cost(APRIL["V4-Pro"], work, hits=False)


def test_a_question_about_a_million_tokens_costs_14_cents_at_flash_and_18_times_that_at_gpt():
    work = question(10**6, answer=2000)
    assert cost(APRIL["V4-Flash"], work) == pytest.approx(0.14056)
    assert cost(APRIL["GPT-5.4"], work) / cost(APRIL["V4-Flash"], work) == pytest.approx(18.0, abs=0.001)


def test_an_agent_reads_its_whole_context_anew_each_turn_and_pays_what_is_new_once():
    work = agent(turns=3, start=100, seen=20, written=5)
    # The turns send 100 + 0, 20 + 105 and 20 + 130 tokens: new ones + known ones.
    assert (work.new, work.cached, work.output) == (140, 235, 15)


def test_half_an_hour_of_a_device_costs_half_its_rent():
    assert rented(1800, rent=2.0) == 1.0
