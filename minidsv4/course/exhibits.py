"""What the museum shows of a trap: its line beside the right one, its symptom, who met it, and which checks see it.

Neither line is written here. The wrong one is read off the mutant's source, the right one off the package's, where it
is the one line of a function that holds a given part.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable

from minidsv4 import ops, visibility
from minidsv4.checkpoint import loading
from minidsv4.course.mutants import MUTANTS, known
from minidsv4.course.tables import Table
from minidsv4.lowbit import entries, mxfp4
from minidsv4.model import losses, rope
from minidsv4.model.attention import WindowAttention
from minidsv4.model.cache import Cache
from minidsv4.model.compressor import Compressor, OverlapCompressor
from minidsv4.model.hyper_connection import HyperConnection
from minidsv4.model.indexer import KeyCompressor
from minidsv4.model.moe import HashRouter
from minidsv4.model.mtp import MTP
from minidsv4.model.rope import Positions
from minidsv4.posttrain import distill, grpo
from minidsv4.serve import prefix_state, ragged
from minidsv4.serve.conversation import grammar, messages, rendering, texts
from minidsv4.serve.pool import Pool
from minidsv4.serve.prefix_files import PrefixFiles
from minidsv4.visibility import Visibility

# A trap = the function that has it right, and a part of the line that does.
RIGHT: dict[str, tuple[Callable, str]] = {
    "output_not_turned_back": (WindowAttention.forward, "turn_THR.conj()"),
    "window_layers_with_the_long_base": (rope.frequencies, "config.rope_theta"),
    "first_channels_rotated": (ops.rotate, "still, rotary ="),
    "half_split_pairs": (ops.rotate, "-> pair ... r"),
    "entries_at_their_index": (Positions.entry_turns, "return"),
    "no_window_in_compressed_layers": (WindowAttention.compressed, "window=self.window"),
    "window_without_the_query": (Visibility.token_map, "age < self.window"),
    "sink_share_given_back": (ops.attention_weights, ".softmax(dim=-1)"),
    "no_causal_mask_on_entries": (Visibility.visible, "seen = entry <"),
    "window_in_progress_visible": (visibility.finished, "return"),
    "picks_of_nothing_are_read": (Visibility.entry_map, "return seen &"),
    "hadamard_on_queries_only": (KeyCompressor.stored, "return"),
    "index_scores_without_relu": (ops.index_scores, ".relu()"),
    "ties_broken_anyhow": (ops.stable_topk, "stable=True"),
    "keys_of_the_last_chunk_only": (Compressor.forward, "return memory.entries.append"),
    "window_0_has_zero_logits": (OverlapCompressor.nothing, "torch.inf"),
    "halves_swapped": (OverlapCompressor.pool_windows, "as_previous, as_current ="),
    "one_softmax_for_all_channels": (ops.slot_weights, "return"),
    "ape_counted_from_the_chunk": (Compressor.pool_windows, "return"),
    "overlap_lost_between_calls": (OverlapCompressor.shifted, "before = memory"),
    "open_window_dropped": (Compressor.forward, "memory.open.append"),
    "window_left_stale": (Cache.go_back, "for series"),
    "overlap_not_rolled_back": (Cache.go_back, "for series"),
    "window_not_carried_over": (WindowAttention.forward, "memory.window.keep"),
    "window_never_forgotten": (WindowAttention.forward, "memory.window.keep"),
    "carry_transposed": (ops.write, "carried_BTND ="),
    "sinkhorn_rows_last": (ops.sinkhorn, "logits_BTij.softmax"),
    "sinkhorn_without_eps": (ops.sinkhorn, "logits_BTij.softmax"),
    "write_with_eps": (HyperConnection.forward, "post_BTN = "),
    "mtp_reads_one_stream": (MTP.draft, "mixed_BTND ="),
    "biased_scores_as_weights": (ops.routing_weights, "chosen_BTA ="),
    "clamp_after_the_product": (ops.swiglu, "return"),
    "hash_table_of_zeros": (HashRouter.pick, "return"),
    "slope_of_an_underflowing_softplus": (ops.affinities, "return"),
    "indexer_never_taught": (losses.model_losses, "indexer = indexer +"),
    "teacher_normed_in_each_head": (ops.teacher, "return"),
    "compared_with_everybody": (grpo.advantages, "unflatten"),
    "thinking_charged_to_wrong_answers": (grpo.Rewards.of, "return"),
    "estimate_differentiated": (distill.sampled_kl, "return"),
    "padding_hidden_by_a_mask": (ragged.padded_logits, "ids = "),
    "blocks_lent_twice": (Pool.find, "return range"),
    "state_lent_as_it_came_back": (Pool.lend, "cache = "),
    "window_of_another_prompt": (PrefixFiles.read, "path = "),
    "blocks_of_whole_pages": (prefix_state.block_tokens, "return"),
    "entries_read_as_fnuz": (entries.unpack_entries, "numbers ="),
    "float32_tensors_rounded": (loading.take_types, "dtype = torch.promote_types"),
    "mtp_left_as_codes": (loading.widened, "return {name: stored_tensor"),
    "high_half_first": (mxfp4.unpack, "return"),
    "reasoning_dropped_with_tools": (rendering._replay_from, "if has_tools"),
    "marker_let_through": (messages._message, "content = "),
    "results_as_they_came": (messages._ordered, "in_order ="),
    "tools_shown_all_the_same": (rendering.encode, "schemas if tool_choice"),
    "tiers_of_the_preview": (texts.added_text, "return"),
    "half_a_marker_passed_on": (grammar.begins_marker, "return"),
}
# Where the threads of a project are, as far as this is known for certain.
THREADS = {
    "1Cat": "1CatAI/1Cat-vLLM",
    "ATOM": "ROCm/ATOM",
    "Atlas": "Avarok-Cybersecurity/atlas",
    "Automodel": "NVIDIA-NeMo/Automodel",
    "Megatron": "NVIDIA/Megatron-LM",
    "Primus": "AMD-AGI/Primus",
    "SGLang": "sgl-project/sglang",
    "llama.cpp": "ggml-org/llama.cpp",
    "llm-compressor": "vllm-project/llm-compressor",
    "mlx-lm": "ml-explore/mlx-lm",
    "mlx-vlm": "Blaizzy/mlx-vlm",
    "mobius": "onnxruntime/mobius",
    "omlx": "jundot/omlx",
    "opencode": "anomalyco/opencode",
    "pypto": "hw-native-sys/pypto-lib",
    "tpu-inference": "vllm-project/tpu-inference",
    "transformers": "huggingface/transformers",
    "vllm": "vllm-project/vllm",
    "vllm-ascend": "vllm-project/vllm-ascend",
    "vllm-ascend-dsv4": "GDzhu01/vllm-ascend-deepseekv4",
}
NOBODY = "no public thread known"
WIDEST = 88  # columns of a line of code in an exhibit


def right_line(name: str) -> tuple[str, str]:
    """Where a trap's right line stands, such as `minidsv4/ops.py, write`, and the line.

    raises  ValueError for a trap that is not exhibited, or whose function has no such line or several
    """
    function, part = RIGHT[exhibited(name)]
    function = inspect.unwrap(function)
    found = [line.strip() for line in body(function) if part in line]
    if len(found) != 1:
        raise ValueError(f"exhibits: {part!r} stands in {len(found)} lines of {function.__qualname__}; give one's part")
    return f"{function.__module__.replace('.', '/')}.py, {function.__qualname__}", found[0]


def exhibited(name: object) -> str:
    """The name of a trap that is exhibited.

    raises  ValueError for anything else; it lists the names that are spelled alike where it is no trap at all
    """
    bug = known(name)
    if bug.name not in RIGHT:
        raise ValueError(f"exhibits: {bug.name!r} is not exhibited; give one of {', '.join(RIGHT)}")
    return bug.name


def body(function: Callable) -> list[str]:
    """The lines of a function below its docstring, as far to the left as they go."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    (node,) = ast.parse("\n".join(lines)).body
    assert isinstance(node, ast.FunctionDef)
    inner = node.body if ast.get_docstring(node) is None else node.body[1:]
    return textwrap.dedent("\n".join(lines[inner[0].lineno - 1 :])).splitlines() if inner else []


def wrong_lines(name: str) -> list[str]:
    """What a trap does in place of the right line; a comment where it does nothing at all.

    raises  ValueError for a name that is no trap's
    """
    return body(known(name).wrong) or ["pass  # nothing at all"]


def folded(line: str) -> list[str]:
    """A line of code, where it is too wide for a listing without its comment, and then cut at blanks."""
    if len(line) > WIDEST:
        line = line.partition("  # ")[0].rstrip()
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(line, WIDEST, subsequent_indent=indent + 8 * " ", break_long_words=False) or [line]


def met_by(found: str) -> str:
    """Who met a trap, in Markdown, with links where the place of the thread is known."""
    if not found:
        return NOBODY

    def link(match: re.Match) -> str:
        project, number = match.groups()
        if project not in THREADS:
            return match[0]
        return f"[{match[0]}](https://github.com/{THREADS[project]}/issues/{number})"

    return re.sub(r"([\w.-]+)#(\d+)", link, found)


def words(name: str) -> str:
    """A name as it is read: underscores are blanks."""
    return name.replace("_", " ")


class Cards:
    """Exhibits, one below the other.

    names   of traps that are in `RIGHT`
    raises  ValueError for others
    """

    def __init__(self, *names: str):
        self.names = [exhibited(name) for name in names]

    def _repr_markdown_(self) -> str:
        return "\n\n".join(self.card(name) for name in self.names)

    def __repr__(self) -> str:
        return "\n".join(f"{words(name)}: {MUTANTS[name].symptom}" for name in self.names)

    def card(self, name: str) -> str:
        """One exhibit in Markdown."""
        bug = known(name)
        place, line = right_line(name)
        wrong = "\n".join(f"- {part}" for line in wrong_lines(name) for part in folded(line))
        right = "\n".join(f"+ {part}" for part in folded(line))
        seen_by = ", ".join(words(check) for check in bug.killed_by)
        return (
            f"**{words(name)}**. {bug.mistake}\n\n```diff\n# {place}\n{wrong}\n{right}\n```\n\n"
            f"*Symptom*: {bug.symptom} *Seen by*: {seen_by}. *Met by*: {met_by(bug.found)}."
        )


def rooms() -> dict[str, list[str]]:
    """The names of all traps by room."""
    found: dict[str, list[str]] = {}
    for name, bug in MUTANTS.items():
        found.setdefault(bug.room, []).append(name)
    return found


def table(names: Iterable[str] = MUTANTS) -> Table:
    """Every trap in a row: its room, its symptom, how many checks see it, who met it.

    names   of traps, or one name
    raises  ValueError for a name that is no trap's
    """
    rows = []
    for name in [names] if isinstance(names, str) else names:
        bug = known(name)
        rows.append((bug.room, words(name), bug.symptom, str(len(bug.killed_by)), met_by(bug.found)))
    return Table(("room", "trap", "symptom", "checks", "met by"), rows)
