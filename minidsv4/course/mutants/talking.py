"""Mistakes in the chat format; the model is right, and reads or says something else."""

from minidsv4.course.mutants.museum import trap
from minidsv4.serve import chat_format
from minidsv4.serve.conversation import messages as messages_module
from minidsv4.serve.conversation import parsing, rendering


@trap(
    at=[(rendering, "_replay_from")],
    symptom="Before each result of a tool the model finds calls whose reason it cannot see, and nothing is cached.",
    found="opencode#24190",
    killed_by=("a_conversation_with_tools_begins_its_continuation", "tools_are_hidden_where_none_may_be_called"),
)
def reasoning_dropped_with_tools(right, messages, has_tools):
    """Reasoning before the last user's turn is dropped although there are tools, with which all of it is kept."""
    return right(messages, False)


@trap(
    at=[(messages_module, "check_text")],
    symptom="Whoever types a marker speaks as the system, as the model, or as the result of a tool.",
    killed_by=("nobody_can_write_a_marker",),
)
def marker_let_through(right, where, text, reserved=()):
    """A user's text may hold markers; it is refused where it does, since a marker is one token to the tokenizer."""
    return right(where, text, ())


@trap(
    at=[(messages_module, "_ordered")],
    symptom="The model takes one tool's result for another's, whenever the second call was the faster one.",
    killed_by=("results_stand_in_the_order_of_their_calls",),
)
def results_as_they_came(right, messages):
    """Results of tools stand in the order in which they came; they stand in that of their calls."""
    return messages


@trap(
    at=[(chat_format, "encode")],
    symptom="The model calls tools in a request that forbids it.",
    found="SGLang#35736",
    killed_by=("tools_are_hidden_where_none_may_be_called",),
)
def tools_shown_all_the_same(right, *args, tool_choice="auto", **options):
    """`tool_choice` "none" is not looked at, and the schemas are shown; it hides them."""
    return right(*args, **options)


@trap(
    at=[(rendering, "added_text")],
    symptom="`high` thinks as little as `low`, `max` as much as `high` should: off by one tier.",
    found="SGLang#33185",
    killed_by=("a_word_means_what_its_profile_says",),
)
def tiers_of_the_preview(right, profile, mode, texts):
    """A mode adds what it added in the preview; the tiers of later releases have other texts under the same words."""
    return right("preview", "none" if mode == "low" else mode, texts)


@trap(
    at=[(parsing, "begins_marker")],
    symptom="Parts of markers stand in answers and arguments, wherever a piece of the stream ended within one.",
    found="vllm#40801, vllm#53227",
    killed_by=("a_reply_cut_anywhere_is_the_same_message",),
)
def half_a_marker_passed_on(right, state, tail):
    """A piece of the stream is passed on whole; the beginning of a marker waits for what completes it."""
    return False
