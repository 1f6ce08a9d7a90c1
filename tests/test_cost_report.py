"""The bill as a dataclass, a table and JSON, and the command that prints it."""

import json

import pytest

import minidsv4 as v4
from minidsv4.__main__ import main
from minidsv4.cost import V32, bill, disk, report
from minidsv4.options import readable


def run(*words):
    return main(["bill", *words])


def test_the_bill_of_flash_at_a_million_tokens_holds_the_numbers_of_the_report():
    made = bill(v4.Config.flash(), 2**20)
    assert made.name == "V4-Flash"
    assert [f"{n / 1e9:.2f}" for n in (made.main.total, made.main.active, made.with_mtp)] == [
        "284.33",
        "13.27",
        "290.94",
    ]
    assert f"{made.cache_bytes / 1e9:.3f}" == "3.688" and f"{made.checkpoint_bytes / 1e9:.1f}" == "159.6"
    assert [f"{n:.2f}" for n in (made.v32_cache_ratio, made.v32_flops_ratio, 100 * made.gqa8_share)] == [
        "13.67",
        "9.90",
        "2.00",
    ]
    assert made.list_prices["April 2026"] == pytest.approx(2**20 * 0.14e-6 + 1000 * 0.28e-6)
    assert 0 < made.compute_price < min(made.list_prices.values())


def test_the_bill_names_the_date_of_each_price(capsys):
    assert run("--model", "pro", "--tokens", "1000000") == 0
    printed = capsys.readouterr().out
    assert "  list price of April 2026                  $1.7435\n" in printed
    assert "  list price of June 2026                   $0.4359\n" in printed
    assert "Beijing's peak hours" in printed and "successors" in printed


def test_the_bill_of_a_model_that_is_not_sold_says_so_and_nothing_of_peak_hours(capsys):
    assert run("--model", "v3.2", "--tokens", "1000") == 0
    printed = capsys.readouterr().out
    assert "list price" in printed and "none" in printed and "peak hours" not in printed


def test_v3_2_is_as_large_as_itself_and_has_no_price():
    made = bill(V32(), 4096)
    assert (made.v32_flops_ratio, made.v32_cache_ratio, made.tail_bytes, made.list_prices) == (1.0, 1.0, 0, {})


def test_a_model_of_other_sizes_gets_a_bill_and_no_price():
    made = bill(v4.Config.mini(), 1000)
    assert made.name == "a V4 model" and made.list_prices == {}
    assert made.with_mtp == sum(p.numel() for p in v4.Model(v4.Config.mini()).parameters()) + 6 * 16  # and the biases


@pytest.mark.parametrize("n_tokens", [0, -3, 2.5, 10**20])
def test_a_length_that_counts_nothing_is_refused(n_tokens):
    with pytest.raises(ValueError, match=f"n_tokens = {n_tokens} is no length"):
        bill(v4.Config.mini(), n_tokens)


def test_the_command_prints_a_table_that_names_every_part(capsys):
    assert run("--model", "flash", "--tokens", "1M") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("V4-Flash at 1,048,576 tokens\n")
    for row in (
        "routed experts        277.025   6.493",
        "all but MTP           284.332  13.270",
        "159.6 GB",
        "3,688.17",
    ):
        assert row in printed
    assert max(len(line) for line in printed.splitlines()) <= 100


@pytest.mark.parametrize("model", ["flash", "pro", "v3.2"])
def test_the_command_prints_json_with_the_same_numbers(model, capsys):
    assert run("--model", model, "--tokens", "32K", "--json") == 0
    read = json.loads(capsys.readouterr().out)
    made = bill(report.MODELS[model](), 32768)
    assert read["cache_bytes"] == made.cache_bytes and read["n_tokens"] == 32768
    assert read["parameters"]["head"] == {
        "total": made.parameters["head"].total,
        "active": made.parameters["head"].active,
    }
    assert [step["n_devices"] for step in read["steps"]] == [step.n_devices for step in made.steps]


def test_the_command_reads_a_config_of_ones_own_from_its_file_or_folder(tmp_path, capsys):
    v4.Config.mini().to_json(tmp_path / "config.json")
    for path in (tmp_path, tmp_path / "config.json"):
        assert run("--model", str(path), "--tokens", "100") == 0
        assert capsys.readouterr().out.startswith("a V4 model at 100 tokens")


def test_a_model_that_is_nowhere_is_refused_with_a_sentence(tmp_path, capsys):
    assert run("--model", str(tmp_path / "none")) == 2
    assert "is none of flash, pro, v3.2, nor a config.json or its folder." in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "K", "many", "", "99999999999999999999", "17M", "9" * 5000])
def test_a_length_that_is_no_number_of_tokens_is_refused_by_the_command(text, capsys):
    with pytest.raises(SystemExit):
        run(f"--tokens={text}")
    assert (
        f"{text!r} is no length; give tokens from 1 to 16,777,216, such as 131072, 128K or 1M"
        in capsys.readouterr().err
    )


def test_lengths_may_be_written_with_k_and_m():
    assert [report.length(text) for text in ("7", "128K", "1m")] == [7, 131072, 2**20]


def test_a_small_models_bytes_have_digits():
    config = v4.Config.tiny()
    told = report.table(bill(config, 100)).partition("it touches ")[2]
    assert told.startswith(f"{readable(disk.touched(config).total)} of them") and not told.startswith("0")
