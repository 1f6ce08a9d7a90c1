"""The definitions of `paper.py` against closed forms and numbers small enough to check by hand, never the model."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minidsv4 import paper

ROOT = Path(__file__).resolve().parents[1]
EXACT = 1e-12  # float64 sums of at most a few hundred terms of size 1
YARN = SimpleNamespace(factor=16, beta_fast=32, beta_slow=1, original_max_position_embeddings=65536)


def normal(*shape, seed=0, std=1.0):
    return std * np.random.default_rng(seed).normal(size=shape)


def close(left, right, tolerance=EXACT):
    return np.allclose(left, right, rtol=0, atol=tolerance)


# ---- the numbering ----


def test_every_number_from_1_to_29_has_a_function_whose_docstring_names_it():
    assert sorted(paper.EQUATIONS) == list(range(1, 30))
    ranges = {4: "(3)-(5)"}
    for number, (function, _, _) in paper.EQUATIONS.items():
        assert ranges.get(number, f"({number})") in function.__doc__


def test_a_form_that_is_neither_released_nor_report_is_refused_by_name():
    with pytest.raises(ValueError, match="visibility is 'code'"):
        paper.visible_entries(3, 4, "code")


# ---- norms and rotary positions ----


def test_rms_norm_of_3_and_4_divides_by_the_root_of_twelve_and_a_half():
    assert close(paper.rms_norm(np.array([3.0, 4.0]), np.array([1.0, 2.0]), eps=0), np.array([3, 8]) / math.sqrt(12.5))


def test_rotation_turns_neighbouring_pairs_of_the_last_channels_only():
    turned = paper.rotate(np.array([7.0, 1.0, 0.0, 0.0, 1.0]), 1, np.array([math.pi / 2, math.pi]))
    assert close(turned, [7, 0, 1, 0, -1])


def test_rotation_keeps_the_norm_and_turning_back_undoes_it():
    x_K, freqs = normal(11), paper.rope_frequencies(6, 10000)
    turned_K = paper.rotate(x_K, 17, freqs)
    assert close(np.linalg.norm(turned_K), np.linalg.norm(x_K))
    assert close(paper.rotate(turned_K, 17, freqs, inverse=True), x_K)
    assert not close(turned_K, x_K, 1e-2)


def test_a_product_of_rotated_vectors_depends_on_the_distance_alone():
    q, k, freqs = normal(10, seed=1), normal(10, seed=2), paper.rope_frequencies(8, 10000)
    near, far = [paper.rotate(q, s + 5, freqs) @ paper.rotate(k, s, freqs) for s in (3, 40)]
    assert close(near, far)
    assert not close(near, q @ k, 1e-3)


def test_yarn_fades_between_pairs_15_and_25_for_the_released_base():
    assert paper.yarn_range(64, 160000, YARN) == (15, 25)
    plain, scaled = paper.rope_frequencies(64, 160000), paper.rope_frequencies(64, 160000, YARN)
    assert close(scaled[:16], plain[:16])
    assert close(scaled[25:], plain[25:] / 16)
    assert close(scaled[20] / plain[20], (1 + 1 / 16) / 2)


def test_yarn_with_an_empty_range_becomes_a_step_instead_of_a_division_by_zero():
    scaling = SimpleNamespace(factor=8, beta_fast=1, beta_slow=1, original_max_position_embeddings=2 * math.pi)
    assert paper.yarn_range(6, 100, scaling) == (0, 0.001)
    plain = paper.rope_frequencies(6, 100)
    assert close(paper.rope_frequencies(6, 100, scaling), [plain[0], plain[1] / 8, plain[2] / 8])


def test_window_layers_use_their_own_base_and_no_yarn():
    config = SimpleNamespace(qk_rope_head_dim=64, rope_theta=10000, compress_rope_theta=160000, rope_scaling=YARN)
    assert close(paper.layer_frequencies("WINDOW", config)[31], 10000 ** (-62 / 64))
    for kind in ("CSA", "HCA"):
        assert close(paper.layer_frequencies(kind, config)[31], 160000 ** (-62 / 64) / 16)


# ---- hyper-connections ----


def test_the_update_reads_writes_and_moves_old_streams_to_new_ones():
    streams_TND = np.array([[[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]])
    carry_NN = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0.0]])  # old 0 to new 1, old 1 to new 2, old 2 to new 0
    maps = [(np.array([1.0, 0.5, 0]), np.array([1.0, 2.0, 0]), carry_NN)]
    updated = paper.hyper_connection(streams_TND, maps, lambda x_TD: -x_TD)
    assert close(updated, [[[100 - 6, 200 - 12], [1 - 12, 2 - 24], [10, 20]]])


def test_with_identity_mix_and_a_one_hot_read_stream_0_is_a_plain_residual():
    streams_TND = normal(5, 4, 6)
    maps = [(np.eye(4)[0], np.ones(4), np.eye(4))] * 5
    updated = paper.hyper_connection(streams_TND, maps, np.tanh)
    assert close(updated[:, 0], streams_TND[:, 0] + np.tanh(streams_TND[:, 0]))


def test_raw_maps_are_packed_read_write_mix_with_one_scale_each():
    base, fn = np.arange(24.0), np.zeros((24, 12))
    fn[[0, 4, 8], 5] = 1.0
    streams_ND = np.zeros((4, 3))
    streams_ND[1, 2] = 12.0  # channel 5 of the flattened streams; its root mean square is 12 / sqrt(12)
    pre, post, mix = paper.raw_maps(streams_ND, fn, base, np.array([1.0, 10.0, 100.0]), eps=0)
    root = math.sqrt(12)
    assert close(pre, [root, 1, 2, 3])
    assert close(post, [4 + 10 * root, 5, 6, 7])
    assert close(mix, np.arange(8.0, 24).reshape(4, 4) + 100 * root * np.outer([1, 0, 0, 0], [1, 0, 0, 0]))


def test_the_maps_ignore_the_scale_of_the_streams():
    streams_ND, fn, base = normal(4, 5), normal(24, 20, seed=1), normal(24, seed=2)
    small, large = [paper.raw_maps(a * streams_ND, fn, base, np.ones(3), eps=0) for a in (1, 1000)]
    assert all(close(a, b, 1e-11) for a, b in zip(small, large, strict=True))


def test_read_weights_are_a_sigmoid_plus_eps_and_write_weights_twice_a_sigmoid():
    raw_N = np.array([-800.0, 0.0, 800.0])
    assert close(paper.read_weights(raw_N), np.array([0, 0.5, 1]) + 1e-6)
    assert close(paper.read_weights(raw_N, form="report"), [0, 0.5, 1])
    assert close(paper.write_weights(raw_N), [0, 1, 2])


def test_sinkhorn_columns_sum_to_1_tightly_and_rows_loosely():
    for seed in range(50):
        mix_NN = paper.sinkhorn(normal(4, 4, seed=seed))
        assert np.max(np.abs(mix_NN.sum(axis=0) - 1)) < 2e-6  # the last division leaves eps / (1 + eps)
        assert paper.birkhoff_distance(mix_NN) < 2e-2  # 20 iterations have not converged: 1.3e-3 is typical
        assert np.min(mix_NN) >= 0


def test_released_and_report_sinkhorn_agree_within_8e_6_for_unit_variance():
    worst = max(
        np.max(np.abs(paper.sinkhorn(raw) - paper.sinkhorn(raw, form="report")))
        for raw in (normal(4, 4, seed=seed) for seed in range(50))
    )
    assert 1e-7 < worst < 8e-6  # eps = 1e-6 in every division is all that differs


def test_the_report_form_alternates_row_and_column_sums_of_the_exponentials():
    raw = np.log(np.array([[1.0, 3.0], [1.0, 1.0]]))
    rows = np.array([[1 / 4, 3 / 4], [1 / 2, 1 / 2]])
    assert close(paper.sinkhorn(raw, iterations=1, form="report"), rows / np.array([3 / 4, 5 / 4]))


def test_the_released_form_puts_eps_after_the_softmax_and_into_every_divisor():
    first = np.full((2, 2), 0.5) + 0.1
    second = first / (1.2 + 0.1)
    third = second / (2 * second[0, 0] + 0.1)
    fourth = third / (2 * third[0, 0] + 0.1)
    assert close(paper.sinkhorn(np.zeros((2, 2)), iterations=1, eps=0.1), second)
    assert close(paper.sinkhorn(np.zeros((2, 2)), iterations=2, eps=0.1), fourth)


def test_birkhoff_distance_sees_rows_columns_and_signs():
    assert paper.birkhoff_distance(np.eye(3)) == 0
    assert close(paper.birkhoff_distance(np.array([[1.0, 0.0], [0.25, 0.75]])), 0.25)
    assert close(paper.birkhoff_distance(np.array([[1.5, -0.5], [-0.5, 1.5]])), 0.5)


def test_head_collapse_without_dynamic_part_is_a_fixed_sum_and_scales_with_the_streams():
    streams_ND = normal(4, 3)
    gate_N = np.array([0.5, 1.0, 0.0, 0.5]) + 1e-6
    base = np.array([0.0, 800.0, -800.0, 0.0])
    assert close(paper.head_collapse(streams_ND, np.zeros((4, 12)), base, np.ones(1)), gate_N @ streams_ND)
    fn = normal(4, 12, seed=1)
    once = paper.head_collapse(streams_ND, fn, base, np.array([0.7]), eps=0)
    assert close(paper.head_collapse(8 * streams_ND, fn, base, np.array([0.7]), eps=0), 8 * once)


# ---- compression ----


def test_the_second_half_of_the_channels_is_the_current_series_and_the_first_half_the_previous():
    weight = np.array([[1.0, 0], [2.0, 0], [0, 3.0], [0, 4.0]])
    current_TK, previous_TK = paper.csa_series(np.array([[1.0, 10.0]]), weight)
    assert close(current_TK, [[30, 40]])
    assert close(previous_TK, [[1, 2]])


def test_the_entry_of_window_0_is_a_softmax_over_its_own_4_tokens():
    values, gates, ape = (
        (normal(8, 3), normal(8, 3, seed=1)),
        (normal(8, 3, seed=2), normal(8, 3, seed=3)),
        normal(4, 6),
    )
    weights = paper.csa_slot_weights(*gates, ape, 0)
    exp = np.exp(gates[0][:4] + ape[:, 3:])
    assert close(weights[:4], 0)
    assert close(weights[4:], exp / exp.sum(axis=0))
    assert close(paper.csa_entry(weights, *values, 0), (exp / exp.sum(axis=0) * values[0][:4]).sum(axis=0))


def test_zero_gates_and_biases_give_the_mean_of_8_values_from_both_windows():
    current_TK, previous_TK, zeros = normal(12, 3), normal(12, 3, seed=1), np.zeros((12, 3))
    weights = paper.csa_slot_weights(zeros, zeros, np.zeros((4, 6)), 2)
    entry_K = paper.csa_entry(weights, current_TK, previous_TK, 2)
    assert close(entry_K, (current_TK[8:12].sum(axis=0) + previous_TK[4:8].sum(axis=0)) / 8)


def test_the_first_half_of_the_position_bias_belongs_to_the_previous_window():
    current_TK, previous_TK, zeros = normal(8, 3), normal(8, 3, seed=1), np.zeros((8, 3))
    for slot, half, series, token in ((2, slice(0, 3), previous_TK, 2), (1, slice(3, 6), current_TK, 5)):
        ape = np.zeros((4, 6))
        ape[slot, half] = 800.0
        weights = paper.csa_slot_weights(zeros, zeros, ape, 1)
        assert close(paper.csa_entry(weights, current_TK, previous_TK, 1), series[token])


def test_slots_are_weighed_for_each_channel_on_its_own():
    weights = paper.slot_softmax(np.array([[0.0, 800.0], [800.0, 0.0], [-np.inf, -np.inf]]))
    assert close(weights, [[0, 1], [1, 0], [0, 0]])


def test_an_hca_entry_is_a_softmax_over_one_window_and_a_mean_when_gates_are_zero():
    value_TK, gate_TK, ape = normal(10, 3), normal(10, 3, seed=1), normal(5, 3, seed=2)
    exp = np.exp(gate_TK[5:] + ape)
    weights = paper.hca_slot_weights(gate_TK, ape, 1)
    assert close(paper.hca_entry(weights, value_TK, 1), (exp / exp.sum(axis=0) * value_TK[5:]).sum(axis=0))
    mean = paper.hca_entry(paper.hca_slot_weights(0 * gate_TK, 0 * ape, 0), value_TK, 0)
    assert close(mean, value_TK[:5].mean(axis=0))


def compressor(width, m, overlap, d_model=7):
    series = 2 * width if overlap else width
    tensors = {"wkv.weight": normal(series, d_model), "wgate.weight": normal(series, d_model, seed=1)}
    return tensors | {"ape": normal(m, series, seed=2), "norm.weight": 1 + normal(width, seed=3, std=0.1)}


@pytest.mark.parametrize(("overlap", "reach"), [(True, 8), (False, 4)])
def test_an_entry_depends_on_its_own_window_and_with_overlap_on_the_one_before(overlap, reach):
    params, x_TD, freqs = compressor(6, 4, overlap), normal(15, 7, seed=4), paper.rope_frequencies(2, 100)
    entry_CK = paper.compressed_entries(params, x_TD, overlap, freqs)
    assert entry_CK.shape == (3, 6)  # the last 3 of 15 tokens give nothing
    for token in range(15):
        changed_TD = x_TD.copy()
        changed_TD[token] += 1
        moved = np.abs(paper.compressed_entries(params, changed_TD, overlap, freqs) - entry_CK).max(axis=1) > 1e-9
        assert list(moved) == [4 * c + 4 - reach <= token < 4 * c + 4 for c in range(3)]


def test_entries_are_normed_then_turned_to_the_first_position_of_their_window():
    params, x_TD, freqs = compressor(6, 5, False), normal(11, 7, seed=4), paper.rope_frequencies(4, 100)
    still_CK = paper.compressed_entries(params, x_TD, False, freqs[:0])
    assert close(np.mean((still_CK / params["norm.weight"]) ** 2, axis=1), 1, 1e-5)  # eps of the norm
    turned_CK = paper.compressed_entries(params, x_TD, False, freqs)
    assert close(turned_CK[1], paper.rotate(still_CK[1], 5, freqs))


def test_fewer_tokens_than_a_window_give_no_entry():
    assert paper.compressed_entries(compressor(6, 5, True), normal(4, 7), True, np.ones(1)).shape == (0, 6)


# ---- index ----


def test_the_hadamard_matrix_is_orthonormal_and_needs_a_power_of_two():
    matrix = paper.hadamard_matrix(16)
    assert close(matrix @ matrix.T, np.eye(16))
    assert close(np.abs(matrix), 0.25)
    assert close(2 * paper.hadamard_matrix(4), [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    with pytest.raises(ValueError, match="width is 12"):
        paper.hadamard_matrix(12)


def test_hadamard_on_queries_and_keys_leaves_the_scores_unchanged():
    query_UZ, key_CZ, weight_U, hadamard = (
        normal(3, 8),
        normal(5, 8, seed=1),
        normal(3, seed=2),
        paper.hadamard_matrix(8),
    )
    plain = paper.index_scores(query_UZ, weight_U, key_CZ)
    assert close(paper.index_scores(query_UZ @ hadamard, weight_U, key_CZ @ hadamard), plain)


def test_index_scores_drop_negative_products_and_keep_negative_weights():
    query_UZ, key_CZ = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[2.0, -1.0], [-3.0, 5.0], [4.0, 6.0]])
    assert close(paper.index_scores(query_UZ, np.array([10.0, -1.0]), key_CZ), [20, -5, 34])


def test_index_queries_are_turned_and_mixed_unless_the_report_form_is_asked_for():
    latent_TQ, wq_b, freqs = normal(3, 5), normal(8, 5, seed=1), paper.rope_frequencies(2, 100)
    plain = paper.index_queries(latent_TQ, wq_b, 2, freqs, form="report")
    assert close(plain[2, 1], wq_b[4:] @ latent_TQ[2])
    expected = paper.hadamard_matrix(4) @ paper.rotate(plain[2, 1], 2, freqs)
    assert close(paper.index_queries(latent_TQ, wq_b, 2, freqs)[2, 1], expected)


def test_index_head_weights_carry_the_released_scale_and_none_in_the_report():
    x_TD, weight = normal(2, 5), normal(3, 5, seed=1)
    report = paper.index_head_weights(x_TD, weight, 12, form="report")
    assert close(report, x_TD @ weight.T)
    assert close(paper.index_head_weights(x_TD, weight, 12), report / 6)  # sqrt(3 heads * 12 channels)


def test_equal_scores_are_picked_lower_index_first():
    score_C = np.array([0.0, 2.0, 0.0, 2.0, 0.0, 1.0])
    assert paper.select_entries(score_C, 5, 6) == [1, 3, 5, 0, 2]
    assert paper.select_entries(np.zeros(9), 4, 9) == [0, 1, 2, 3]


def test_only_visible_entries_are_picked_even_when_fewer_than_asked_for():
    score_C = np.array([1.0, 3.0, 9.0])
    assert paper.select_entries(score_C, 5, 2) == [1, 0]
    assert paper.select_entries(score_C, 5, 0) == []


def test_the_index_loss_is_zero_when_scores_are_the_log_of_the_summed_attention():
    weight_HC = np.array([[0.1, 0.2, 0.1], [0.01, 0.03, 0.06]])
    total_C = weight_HC.sum(axis=0)
    assert close(paper.index_loss(np.log(total_C) + 5, weight_HC), 0)
    share_C = total_C / 0.5
    assert close(paper.index_loss(np.zeros(3), weight_HC), math.log(3) + sum(share_C * np.log(share_C)))


# ---- who sees what, and attention ----


def test_a_query_sees_the_window_it_completes_only_in_the_released_form():
    assert [paper.visible_entries(t, 4) for t in (0, 2, 3, 4, 6, 7)] == [0, 0, 1, 1, 1, 2]
    assert [paper.visible_entries(t, 4, "report") for t in (0, 2, 3, 4, 6, 7, 8)] == [0, 0, 0, 1, 1, 1, 2]
    assert [paper.visible_entries(t, 128) for t in (126, 127, 128, 254, 255)] == [0, 1, 1, 1, 2]


def test_the_window_counts_the_query_itself():
    assert list(paper.window_tokens(5, 3)) == [3, 4, 5]
    assert list(paper.window_tokens(1, 3)) == [0, 1]


def test_without_a_sink_the_weights_are_an_ordinary_softmax_and_a_large_sink_takes_all():
    logits_S = normal(5)
    plain = np.exp(logits_S) / np.exp(logits_S).sum()
    assert close(paper.sink_softmax(logits_S, -np.inf), plain)
    assert close(paper.sink_softmax(logits_S, 800.0), 0)
    assert close(paper.sink_softmax(np.zeros(3), math.log(2)), [0.2, 0.2, 0.2])
    assert close(paper.sink_softmax(logits_S + 700, 700.0), paper.sink_softmax(logits_S, 0.0))


def test_each_head_attends_with_its_own_query_and_unscaled_sink():
    query_HK = np.array([[2 * math.log(3), 0, 0, 0], [0.0, 0, 0, 0]])
    entry_SK = np.array([[1.0, 2, 0, 0], [0, 0, 4.0, 0], [0, 0, 0, 8.0]])
    output_HK = paper.core_attention(query_HK, entry_SK, np.array([0.0, math.log(5)]))
    assert close(output_HK, [[3 / 6, 6 / 6, 4 / 6, 8 / 6], [1 / 8, 2 / 8, 4 / 8, 8 / 8]])


def test_the_order_of_entries_does_not_matter():
    query_HK, entry_SK, sink_H = normal(3, 4), normal(6, 4, seed=1), normal(3, seed=2)
    forward = paper.core_attention(query_HK, entry_SK, sink_H)
    assert close(paper.core_attention(query_HK, entry_SK[::-1], sink_H), forward)


def test_attention_queries_have_norm_sqrt_k_in_every_head_before_and_after_the_turn():
    query_THK = paper.attention_queries(normal(3, 5), normal(12, 5, seed=1), 2, paper.rope_frequencies(4, 100))
    assert query_THK.shape == (3, 2, 6)
    assert close(np.sum(query_THK**2, axis=-1), 6, 1e-4)  # eps = 1e-6 of the norm over mean squares near 1


def test_the_query_latent_is_normed_with_a_weight():
    x_TD, wq_a, weight_Q = normal(2, 5), normal(3, 5, seed=1), np.array([1.0, 2.0, 3.0])
    latent_Q = wq_a @ x_TD[1]
    expected = latent_Q / math.sqrt(np.mean(latent_Q**2)) * weight_Q
    assert close(paper.query_latent(x_TD, wq_a, weight_Q, eps=0)[1], expected)


def test_the_grouped_output_is_a_dense_projection_with_a_block_diagonal_factor():
    heads_HK, wo_a, wo_b = normal(6, 4), normal(2 * 3, 3 * 4, seed=1), normal(5, 2 * 3, seed=2)
    dense = np.zeros((6, 24))
    dense[:3, :12], dense[3:, 12:] = wo_a[:3], wo_a[3:]
    assert close(paper.grouped_output(heads_HK, wo_a, wo_b, 2), wo_b @ dense @ heads_HK.reshape(-1))


# ---- experts ----


def test_affinities_are_the_root_of_softplus():
    score_E = paper.affinities(np.array([1.0]), np.array([[0.0], [400.0], [-800.0]]))
    assert close(score_E, [math.sqrt(math.log(2)), 20, 0])


def test_routing_weights_sum_to_the_route_scale():
    chosen, weight_A = paper.route(np.abs(normal(9)), 4, 2.5)
    assert len(set(chosen)) == 4
    assert close(sum(weight_A), 2.5)


def test_the_bias_changes_the_choice_but_not_the_weights():
    score_E, bias_E = np.array([4.0, 3.0, 2.0, 1.0, 1.0]), np.array([-9.0, 0, 0, 9.0, 0])
    chosen, weight_A = paper.route(score_E, 2, 1.5, bias_E)
    assert chosen == [3, 1]
    assert close(weight_A, [1.5 / 4, 1.5 * 3 / 4])
    assert paper.route(score_E, 2, 1.5, bias_E + 7)[0] == chosen


def test_equal_affinities_choose_the_lower_expert():
    assert paper.route(np.ones(5), 3, 1.0)[0] == [0, 1, 2]


def test_a_hash_layer_takes_the_experts_of_the_table_and_weighs_them_by_affinity():
    chosen, weight_A = paper.route(np.array([4.0, 3.0, 2.0, 1.0]), 2, 1.5, fixed=[3, 1])
    assert chosen == [3, 1]
    assert close(weight_A, [1.5 / 4, 4.5 / 4])


def test_the_clamp_bounds_the_gate_from_above_and_the_other_factor_on_both_sides():
    def run(gate, up, limit):
        return paper.expert(np.ones(1), np.array([[gate]]), np.ones((1, 1)), np.array([[up]]), limit)[0]

    def silu(x):
        return x / (1 + math.exp(-x))

    assert close(run(30.0, -30.0, 10.0), silu(10) * -10)
    assert close(run(30.0, 30.0, 10.0), silu(10) * 10)
    assert close(run(-20.0, 3.0, 10.0), silu(-20) * 3)  # a symmetric clamp would give silu(-10)
    assert close(run(30.0, 30.0, None), silu(30) * 30)


def test_the_shared_expert_is_clamped_unless_the_first_release_is_asked_for():
    params = {f"shared_experts.{w}.weight": np.array([[30.0]]) for w in ("w1", "w3")}
    params |= {"shared_experts.w2.weight": np.ones((1, 1)), "gate.weight": np.ones((2, 1))}
    params |= {f"experts.{e}.{w}.weight": np.zeros((1, 1)) for e in (0, 1) for w in ("w1", "w2", "w3")}
    config = SimpleNamespace(num_experts_per_tok=1, routed_scaling_factor=1.5, swiglu_limit=10.0)
    # silu(10) = 10 - 4.5e-4 and silu(30) = 30 - 3e-12
    assert close(paper.moe_layer(params, np.ones((1, 1)), [0], config), 100, 5e-3)
    assert close(paper.moe_layer(params, np.ones((1, 1)), [0], config, clamp_shared=False), 900, 1e-9)


def test_the_balance_loss_is_1_when_balanced_and_grows_to_e_over_a_when_not():
    uniform_TE = np.ones((6, 4))
    assert close(paper.balance_loss(uniform_TE, np.array([[0, 1], [2, 3]] * 3)), 1)
    lopsided_TE = np.tile([1.0, 1.0, 0.0, 0.0], (6, 1))
    assert close(paper.balance_loss(lopsided_TE, np.array([[0, 1]] * 6)), 2)


def test_the_bias_rises_for_idle_experts_and_falls_for_busy_ones():
    assert close(paper.updated_bias(np.array([0.5, 0.5, 0.5]), [1, 9, 5], speed=0.01), [0.51, 0.49, 0.5])


# ---- the whole model ----

KINDS = ("WINDOW", "CSA", "HCA", "WINDOW")  # the last one is the MTP block


def toy_config(**changes):
    fields = {"num_hidden_layers": 3, "num_attention_heads": 6, "head_dim": 8, "qk_rope_head_dim": 4, "o_groups": 2}
    fields |= {"sliding_window": 3, "index_n_heads": 5, "index_head_dim": 16, "index_topk": 2}
    fields |= {"num_experts_per_tok": 2, "routed_scaling_factor": 1.5, "swiglu_limit": 0.7}
    fields |= {"hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6}
    fields |= {"rope_theta": 10000.0, "compress_rope_theta": 160000.0, "rope_scaling": None}
    return SimpleNamespace(**fields | changes, layer_types=[SimpleNamespace(name=kind) for kind in KINDS])


def block_shapes(kind, hashed):
    """Released names and shapes of one block with D=10 Q=9 H=6 K=8 G=2 O=3 U=5 Z=16 E=7 F=11 N=4."""
    shapes = {"attn.wq_a.weight": (9, 10), "attn.q_norm.weight": (9,), "attn.wq_b.weight": (48, 9)}
    shapes |= {"attn.wkv.weight": (8, 10), "attn.kv_norm.weight": (8,), "attn.attn_sink": (6,)}
    shapes |= {"attn.wo_a.weight": (6, 24), "attn.wo_b.weight": (10, 6)}
    m, sides = {"WINDOW": (0, 0), "CSA": (4, 2), "HCA": (6, 1)}[kind]
    widths = {"attn.compressor": 8} if kind == "HCA" else {"attn.compressor": 8, "attn.indexer.compressor": 16}
    for name, width in widths.items() if m else ():
        shapes |= {f"{name}.{series}.weight": (sides * width, 10) for series in ("wkv", "wgate")}
        shapes |= {f"{name}.ape": (m, sides * width), f"{name}.norm.weight": (width,)}
    if kind == "CSA":
        shapes |= {"attn.indexer.wq_b.weight": (80, 9), "attn.indexer.weights_proj.weight": (5, 10)}
    for expert in [f"experts.{e}" for e in range(7)] + ["shared_experts"]:
        shapes |= {f"ffn.{expert}.{w}.weight": (10, 11) if w == "w2" else (11, 10) for w in ("w1", "w2", "w3")}
    shapes |= {"ffn.gate.weight": (7, 10)} | ({} if hashed else {"ffn.gate.bias": (7,)})
    for site in ("attn", "ffn"):
        shapes |= {f"hc_{site}_fn": (24, 40), f"hc_{site}_base": (24,), f"hc_{site}_scale": (3,)}
    return shapes | {"attn_norm.weight": (10,), "ffn_norm.weight": (10,)}


def toy_params():
    collapse = {"norm.weight": (10,), "hc_head_fn": (4, 40), "hc_head_base": (4,), "hc_head_scale": (1,)}
    shapes = {"embed.weight": (13, 10), "head.weight": (13, 10)} | collapse
    shapes |= {f"mtp.0.{name}": shape for name, shape in collapse.items()}
    shapes |= {f"mtp.0.{name}.weight": (10, 10) for name in ("e_proj", "h_proj")}
    shapes |= {f"mtp.0.{name}.weight": (10,) for name in ("enorm", "hnorm")}
    for prefix, kind in zip(("layers.0.", "layers.1.", "layers.2.", "mtp.0."), KINDS, strict=True):
        shapes |= {prefix + name: shape for name, shape in block_shapes(kind, hashed=prefix == "layers.0.").items()}
    params = {name: normal(*shape, seed=seed, std=0.6) for seed, (name, shape) in enumerate(shapes.items())}
    params["layers.0.ffn.gate.tid2eid"] = np.array([[token % 7, (token + 3) % 7] for token in range(13)])
    return params


IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 12]


def test_a_changed_token_leaves_earlier_logits_alone_and_moves_its_own():
    params, config = toy_params(), toy_config()
    logits_TV = paper.model_logits(params, config, IDS)
    assert logits_TV.shape == (13, 13)
    for token in (0, 3, 5, 8):
        changed = IDS[:token] + [0] + IDS[token + 1 :]
        moved = np.abs(paper.model_logits(params, config, changed) - logits_TV).max(axis=1)
        assert np.all(moved[:token] == 0)
        assert moved[token] > 1e-3


def test_mtp_logits_read_the_next_token_and_not_the_one_they_predict():
    params, config = toy_params(), toy_config()
    logits_TV = paper.mtp_logits(params, config, IDS)
    assert logits_TV.shape == (12, 13)
    changed = IDS[:6] + [0] + IDS[7:]
    moved = np.abs(paper.mtp_logits(params, config, changed) - logits_TV).max(axis=1)
    assert np.all(moved[:5] == 0)
    assert moved[5] > 1e-3


def test_the_mtp_input_adds_one_token_term_to_every_stream():
    streams_TND, next_TD = normal(2, 4, 3), normal(2, 3, seed=1)
    params = {"e_proj.weight": 2 * np.eye(3), "h_proj.weight": 5 * np.eye(3)}
    params |= {"enorm.weight": np.ones(3), "hnorm.weight": np.array([1.0, 0.0, -1.0])}
    mixed = paper.mtp_input(streams_TND, next_TD, params, eps=0)[1, 2]
    token, stream = next_TD[1], streams_TND[1, 2]
    token, stream = token / math.sqrt(np.mean(token**2)), stream / math.sqrt(np.mean(stream**2))
    assert close(mixed, 2 * token + 5 * stream * np.array([1, 0, -1]))


def attention_output(kind, layer, x_TD, **changes):
    params = paper.parameters_under(toy_params(), f"layers.{layer}.attn.")
    return paper.attention_layer(params, x_TD, kind, toy_config(**changes))


def test_equal_tokens_give_equal_outputs_wherever_the_window_is_full():
    output_TD = attention_output("WINDOW", 0, np.tile(normal(10), (9, 1)))
    # Only relative positions remain once the output is turned back, so a full window of one token is the same anywhere.
    assert close(output_TD[2:], np.tile(output_TD[2], (7, 1)), 1e-11)
    assert not close(output_TD[1], output_TD[2], 1e-4)


def test_a_window_layer_forgets_what_lies_outside_the_window():
    x_TD = normal(8, 10)
    changed_TD = x_TD.copy()
    changed_TD[2] += 1
    moved = np.abs(attention_output("WINDOW", 0, changed_TD) - attention_output("WINDOW", 0, x_TD)).max(axis=1)
    assert list(moved > 1e-9) == [False, False, True, True, True, False, False, False]


@pytest.mark.parametrize(("kind", "layer", "m"), [("CSA", 1, 4), ("HCA", 2, 6)])
def test_visibility_matters_only_for_queries_that_complete_a_window(kind, layer, m):
    params = paper.parameters_under(toy_params(), f"layers.{layer}.attn.")
    x_TD, config = normal(15, 10), toy_config(index_topk=8)
    released, report = [paper.attention_layer(params, x_TD, kind, config, form) for form in ("released", "report")]
    moved = np.abs(released - report).max(axis=1) > 1e-9
    assert list(moved) == [t % m == m - 1 for t in range(15)]


def test_top_k_at_least_the_number_of_entries_makes_csa_dense():
    x_TD = normal(15, 10)
    narrow, wide, wider = [attention_output("CSA", 1, x_TD, index_topk=k) for k in (2, 3, 30)]
    assert close(wide, wider)
    assert not close(narrow, wide, 1e-4)


def test_picked_entries_are_the_best_visible_ones_and_hadamard_does_not_change_them():
    params, config = paper.parameters_under(toy_params(), "layers.1.attn."), toy_config()
    x_TD, latent_TQ, freqs = normal(15, 10), normal(15, 9, seed=1), paper.layer_frequencies("CSA", config)
    query_TUZ = (latent_TQ @ params["indexer.wq_b.weight"].T).reshape(15, 5, 16)
    query_TUZ = np.array([[paper.rotate(head, t, freqs) for head in heads] for t, heads in enumerate(query_TUZ)])
    key_CZ = paper.compressed_entries(paper.parameters_under(params, "indexer.compressor."), x_TD, True, freqs)
    positive = np.maximum(np.einsum("tuz,cz->tuc", query_TUZ, key_CZ), 0)
    score_TC = np.einsum("tuc,tu->tc", positive, x_TD @ params["indexer.weights_proj.weight"].T)
    best = [list(np.argsort(-score_TC[t, : (t + 1) // 4])[:2]) for t in range(15)]
    assert paper.picked_entries(params, x_TD, latent_TQ, config, freqs) == best


def test_every_tensor_of_a_block_takes_part_in_its_output():
    config, ids_T, streams_TND = toy_config(index_topk=1), IDS, normal(13, 4, 10)
    params = paper.parameters_under(toy_params(), "layers.1.")
    before = paper.block(params, streams_TND, ids_T, "CSA", config)
    # A tensor of the indexer acts only through the choice of entries, so each is replaced, not nudged.
    for name in [name for name in params if ".experts." not in name]:
        replaced = params | {name: normal(*params[name].shape, seed=99)}
        moved = np.abs(paper.block(replaced, streams_TND, ids_T, "CSA", config) - before).max()
        assert moved > 1e-6, name


# ---- training ----


def test_a_newton_schulz_step_maps_each_singular_value_by_its_polynomial():
    left, _ = np.linalg.qr(normal(3, 3))
    right, _ = np.linalg.qr(normal(5, 5, seed=1))
    values = np.array([0.9, 0.5, 0.1])
    stepped = paper.newton_schulz_step(left @ np.diag(values) @ right[:3], 2.0, -1.5, 0.5)
    assert close(stepped, left @ np.diag(2 * values - 1.5 * values**3 + 0.5 * values**5) @ right[:3])


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 31)])
def test_eight_fast_steps_bring_singular_values_near_1_and_two_exact_ones_to_1(shape):
    for seed in range(10):
        matrix = normal(*shape, seed=seed, std=1e3)
        fast = np.linalg.svd(paper.newton_schulz(matrix, n_exact=0), compute_uv=False)
        full = np.linalg.svd(paper.newton_schulz(matrix), compute_uv=False)
        # The reach of the two polynomials over all singular values from 1e-3 to 1, scanned once.
        assert fast.min() > 0.6818 and fast.max() < 1.1344
        assert full.min() > 1 - 1e-12 and full.max() < 1.00054


def test_a_singular_value_of_1e_4_still_ends_within_0_0021_of_1():
    assert close(paper.newton_schulz(np.diag([1.0, 1e-4]))[1, 1], 1, 2.1e-3)


def test_newton_schulz_keeps_the_singular_vectors():
    left, _, right = np.linalg.svd(normal(4, 7), full_matrices=False)
    assert close(paper.newton_schulz(normal(4, 7)), left @ right, 1e-3)  # singular values end within 5.4e-4 of 1


@pytest.mark.parametrize("shape", [(5, 24), (24, 5), (8, 40)])
def test_a_muon_update_has_root_mean_square_0_18_for_every_shape(shape):
    weight, momentum = paper.muon_update(np.zeros(shape), normal(*shape), np.zeros(shape), lr=0.5)
    assert close(math.sqrt(np.mean(weight**2)) / 0.5, 0.18, 2e-4)  # 0.18 times the 5.4e-4 of newton_schulz
    assert close(momentum, normal(*shape))


def test_muon_looks_ahead_along_the_momentum_and_decays_the_weight():
    weight, gradient, momentum = normal(3, 8), normal(3, 8, seed=1), normal(3, 8, seed=2)
    new_weight, new_momentum = paper.muon_update(weight, gradient, momentum, lr=0.01, mu=0.9, decay=0.2)
    assert close(new_momentum, 0.9 * momentum + gradient)
    step = paper.newton_schulz(0.81 * momentum + 1.9 * gradient) * math.sqrt(8) * 0.18
    assert close(new_weight, 0.998 * weight - 0.01 * step)


def test_the_distillation_loss_is_zero_only_for_equal_distributions():
    student_TV, other_TV = normal(3, 6), normal(3, 6, seed=1)
    assert close(paper.distillation_loss(student_TV, [student_TV + 4, student_TV], [0.3, 0.7]), 0)
    assert paper.distillation_loss(student_TV, [student_TV, other_TV], [0.3, 0.7]) > 0.1


def test_the_distillation_loss_is_the_reverse_divergence_weighted_and_averaged_over_positions():
    student_TV = np.zeros((2, 2))
    teacher_TV = np.log(np.array([[0.25, 0.75], [0.5, 0.5]]))
    reverse = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert close(paper.distillation_loss(student_TV, [teacher_TV, teacher_TV], [1.0, 3.0]), 4 * reverse / 2)


# ---- from an equation to the line ----


@pytest.mark.parametrize("number", range(1, 30))
def test_a_row_of_the_table_leads_to_a_docstring_or_line_that_names_the_equation(number):
    _, operation, file = paper.EQUATIONS[number]
    source = (ROOT / file).read_text(encoding="utf-8")
    for name in operation.split(", "):
        assert f"def {name}(" in source or f"class {name}(" in source
    spans = [(int(first), int(last or first)) for first, last in re.findall(r"\((\d+)\)(?:-\((\d+)\))?", source)]
    assert any(first <= number <= last for first, last in spans), f"{file} does not name eq. ({number})"


def test_the_readme_shows_the_row_of_every_equation():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for number, (loop, operation, file) in paper.EQUATIONS.items():
        assert f"| ({number}) | `{loop.__name__}` | [`{operation}`]({file}) |" in readme
