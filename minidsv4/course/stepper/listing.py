"""The source that the stepper shows: each function of `paper.py` as coloured lines, with what it computes.

A function inside another one is shown within it.
"""

import ast
import inspect
import io
import keyword
import tokenize

from minidsv4 import paper

NOTEBOOKS = {  # what explains a function in the course
    "00_tour": ("model_logits", "model_streams", "block", "stream_logits", "project", "parameters_under"),
    "01_attention": (
        *("rotate", "rope_frequencies", "yarn_range", "layer_frequencies", "rms_norm", "query_latent"),
        *("attention_queries", "core_attention", "sink_softmax", "window_tokens", "grouped_output", "attention_layer"),
        *("window_entries", "entries_read"),
    ),
    "02_compression": (
        *("csa_series", "csa_slot_weights", "csa_entry", "hca_series", "hca_slot_weights", "hca_entry"),
        *("compressed_entries", "slot_softmax"),
    ),
    "03_indexer": (
        *("index_queries", "index_head_weights", "index_scores", "select_entries", "picked_entries"),
        *("visible_entries", "hadamard_matrix"),
    ),
    "06_streams": (
        *("hyper_connection", "raw_maps", "read_weights", "write_weights", "sinkhorn", "stream_maps"),
        *("head_collapse", "sigmoid"),
    ),
    "07_experts": ("affinities", "route", "expert", "moe_layer"),
}


def listings(lines):
    """The functions whose `def` stands on one of these lines, by that line.

    lines    numbers of lines of `paper.py`
    returns  {line of def: dictionary of name, words on it, equations, notebook, first line, coloured lines}
    """
    source = inspect.getsource(paper)
    coloured = coloured_lines(source)
    outermost = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    found = {}
    for line in sorted(lines):
        outer = next(node for node in outermost if node.lineno <= line <= node.end_lineno)
        found[line] = {
            "name": outer.name,
            "words": ast.get_docstring(outer).split("\n\n")[0].replace("\n", " "),
            "equations": [
                number for number, equation in paper.EQUATIONS.items() if equation.loop.__name__ == outer.name
            ],
            "notebook": next(notebook for notebook, names in NOTEBOOKS.items() if outer.name in names),
            "first": outer.lineno,
            "lines": coloured[outer.lineno - 1 : outer.end_lineno],
        }
    return found


def coloured_lines(source):
    """Each line of a Python source as pairs (kind, text), kind one of "", "word", "text", "comment" and "number"."""
    lines = source.splitlines()
    pieces = [[] for _ in lines]
    done = [0] * len(lines)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = kind_of(token)
        if not kind:
            continue
        for row in range(token.start[0] - 1, token.end[0]):
            start = token.start[1] if row == token.start[0] - 1 else 0
            end = token.end[1] if row == token.end[0] - 1 else len(lines[row])
            pieces[row] += [("", lines[row][done[row] : start]), (kind, lines[row][start:end])]
            done[row] = end
    for row, line in enumerate(lines):
        pieces[row].append(("", line[done[row] :]))
    return [[piece for piece in row if piece[1]] for row in pieces]


def kind_of(token):
    """The colour of a token of Python; "" where it has none."""
    if token.type == tokenize.NAME and keyword.iskeyword(token.string):
        return "word"
    return {tokenize.STRING: "text", tokenize.COMMENT: "comment", tokenize.NUMBER: "number"}.get(token.type, "")
