"""Checkups: questions to the model that is running, each of which raises AssertionError where something is wrong.

    with mutant("carry_transposed"):
        caught_by()  # {"agrees_with_paper"}

They examine one small model in float64 that has every mechanism (`subject.py`). Each trap of the bug museum names those
that see it. One more, the comparison with transformers, needs that library and stands in `tests/test_mutants.py`.
"""

from collections.abc import Callable, Iterable

from minidsv4.course.checkups import files, forward, learning, memory, subject, talking

BESIDE_THE_TESTS = "agrees_with_transformers"
CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        forward.agrees_with_paper,
        forward.later_tokens_change_nothing_before,
        forward.moving_the_text_changes_nothing,
        forward.new_streams_are_means_of_old_ones,
        forward.routing_weights_sum_to_the_scale,
        memory.chunks_equal_one_pass,
        memory.restoring_forgets_what_was_rejected,
        memory.cache_bytes_equal_the_formula,
        memory.a_padded_row_is_what_it_is_alone,
        memory.a_lent_cache_holds_its_own_text,
        memory.a_prefix_hit_goes_on_with_its_own_text,
        memory.an_entry_of_8_bits_is_read_as_the_format_says,
        files.a_saved_model_comes_back_as_it_was,
        files.weights_of_8_bits_come_back_with_their_scales,
        files.four_bits_are_read_as_the_format_says,
        files.the_last_ratio_is_that_of_the_mtp_block,
        learning.indexers_learn_what_their_layers_read,
        learning.the_trunk_learns_from_the_text_alone,
        learning.gradients_are_finite_where_softplus_underflows,
        learning.a_reply_is_compared_with_its_own_group,
        learning.a_wrong_answer_is_worth_nothing_however_short,
        learning.the_divergence_weighs_by_the_student,
        learning.the_sampled_gradient_is_the_full_one_in_the_mean,
        talking.a_conversation_with_tools_begins_its_continuation,
        talking.nobody_can_write_a_marker,
        talking.results_stand_in_the_order_of_their_calls,
        talking.tools_are_hidden_where_none_may_be_called,
        talking.a_word_means_what_its_profile_says,
        talking.a_reply_cut_anywhere_is_the_same_message,
    )
}


def fails(check: Callable[[], None]) -> bool:
    """Whether a check notices something; any error but a failed assertion goes through."""
    try:
        check()
    except AssertionError:
        return True
    return False


def prepare() -> None:
    """Make the model and what is known of it, while nothing is wrong yet."""
    subject.by_hand()


def caught_by(names: Iterable[str] = CHECKS) -> set[str]:
    """The checks among these that notice something now; `prepare` was called before anything went wrong.

    raises  ValueError for a name that is not in `CHECKS`
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in CHECKS:
            raise ValueError(f"checkups: {name!r} is no check that can run here; give some of {', '.join(CHECKS)}")
    return {name for name in names if fails(CHECKS[name])}
