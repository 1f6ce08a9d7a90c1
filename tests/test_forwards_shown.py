"""The model stands before the reader: each notebook on a part of it lists that part's forward whole."""

import nbformat
import pytest

from minidsv4.course import notebooks, show
from minidsv4.model.attention import WindowAttention
from minidsv4.model.block import Block
from minidsv4.model.compressor import Compressor
from minidsv4.model.hyper_connection import HyperConnection
from minidsv4.model.indexer import Indexer
from minidsv4.model.model import Model
from minidsv4.model.moe import MoE

FORWARDS = {
    "00_tour": Block.forward,
    "01_attention": WindowAttention.forward,
    "02_compression": Compressor.forward,
    "03_indexer": Indexer.forward,
    "06_streams": HyperConnection.forward,
    "07_experts": MoE.forward,
    "10_training": Model.streams,
}


def lists(notebook, function):
    """Whether a stored listing holds the function's source as it stands in the package today."""
    _, source = show.source(function).text.split("\n", 1)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    return any(source in output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.parametrize("stem", FORWARDS)
def test_a_notebook_lists_the_forward_of_its_part_whole(stem):
    assert lists(nbformat.read(notebooks.FOLDER / f"{stem}.ipynb", as_version=4), FORWARDS[stem])


@pytest.mark.parametrize("stem", FORWARDS)
def test_a_forward_that_is_listed_in_part_is_missed(stem):
    notebook = nbformat.read(notebooks.FOLDER / f"{stem}.ipynb", as_version=4)
    _, source = show.source(FORWARDS[stem]).text.split("\n", 1)
    last_line = source.splitlines()[-1]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/plain" in output.get("data", {}):
                output.data["text/plain"] = output.data["text/plain"].replace(last_line, "...")
    assert not lists(notebook, FORWARDS[stem])
