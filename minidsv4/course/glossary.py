"""The abbreviations of the course spelled out, and the page that explains them beside the letters of `dims.py`."""

import re
from dataclasses import dataclass

from minidsv4.config import Config
from minidsv4.course.index import lessons
from minidsv4.course.tables import Table
from minidsv4.dims import GLOSSARY, STREAM_PAIR


@dataclass(frozen=True)
class Abbreviation:
    """What an abbreviation stands for, and where the course explains it.

    words     the abbreviation spelled out
    notebook  number of the notebook that explains it; empty where none does
    everyday  True where the course takes it as known and spells it out on this page only
    """

    words: str
    notebook: str = ""
    everyday: bool = False


ABBREVIATIONS = {
    "AIC": Abbreviation("AI core for cubes", "13"),
    "AIV": Abbreviation("AI core for vectors", "13"),
    "BF16": Abbreviation("16-bit brain floating point", everyday=True),
    "BOS": Abbreviation("beginning of sequence", "10"),
    "CP": Abbreviation("context parallelism", "14"),
    "CSA": Abbreviation("Compressed Sparse Attention", "02"),
    "DSA": Abbreviation("DeepSeek Sparse Attention", "03"),
    "EOS": Abbreviation("end of sequence", "10"),
    "EP": Abbreviation("expert parallelism", "13"),
    "EPLB": Abbreviation("Expert Parallelism Load Balancer", "13"),
    "FLOP": Abbreviation("floating-point operation", "12"),
    "FP32": Abbreviation("32-bit floating point", everyday=True),
    "FP4": Abbreviation("4-bit floating point", "03"),
    "FP8": Abbreviation("8-bit floating point", "12"),
    "GPU": Abbreviation("graphics processing unit", everyday=True),
    "GQA": Abbreviation("grouped-query attention", "05"),
    "GRPO": Abbreviation("group relative policy optimisation", "18"),
    "HC": Abbreviation("hyper-connections", "06"),
    "HCA": Abbreviation("Heavily Compressed Attention", "02"),
    "KL": Abbreviation("Kullback-Leibler divergence", "03"),
    "KV": Abbreviation("key-value", "01"),
    "MaxVio": Abbreviation("maximal violation", "07"),
    "mHC": Abbreviation("manifold-constrained hyper-connections", "06"),
    "MHA": Abbreviation("multi-head attention", "05"),
    "MLA": Abbreviation("multi-head latent attention", "05"),
    "MoE": Abbreviation("mixture of experts", "07"),
    "MQA": Abbreviation("multi-query attention", "01"),
    "MTP": Abbreviation("multi-token prediction", "08"),
    "MXFP4": Abbreviation("microscaling 4-bit floating point", "03"),
    "NPU": Abbreviation("neural processing unit", "13"),
    "QAT": Abbreviation("quantisation-aware training", "11"),
    "ReLU": Abbreviation("rectified linear unit", "03"),
    "RMS": Abbreviation("root mean square", "09"),
    "RoPE": Abbreviation("rotary position embedding", "01"),
    "SwiGLU": Abbreviation("Swish-gated linear unit", "07"),
    "UB": Abbreviation("unified bus", "13"),
    "URMA": Abbreviation("unified remote memory access", "13"),
    "YaRN": Abbreviation("yet another RoPE extension", "01"),
    "ZeRO": Abbreviation("zero redundancy optimizer", "09"),
}


def glossary_cells(folder):
    """The glossary page of the notebooks in a folder: the axes with their letters, then the abbreviations."""
    known = lessons(folder)
    return [
        ("md", "# Which letter, which abbreviation?\n\nBack to the [index](index.ipynb)."),
        ("md", f"## Letters\n\n{LETTERS}\n\n{Table(AXES, _axis_rows()).markdown()}"),
        ("md", f"## Abbreviations\n\n{Table(WORDS, _word_rows(known)).markdown()}"),
    ]


WORDS = ("abbreviation", "in words", "explained in")
AXES = ("letter", "meaning", "symbol in the report", "released name", "Flash", "Pro")
LETTERS = (
    "One letter stands for one axis, in every formula, name and pattern of the course and of the package: `query_BTHK` "
    "has the axes batch, token, head and head width, and an einops pattern says the same in lower case, `b t h k`. "
    "The letters are those of `minidsv4/dims.py`; the released name is the field of the released `config.json`."
)


def _axis_rows():
    """One row for each letter."""
    flash, pro = Config.flash(), Config.pro()
    for letter, axis in GLOSSARY.items():
        sizes = (_size(axis.flash, axis.field, flash), _size(axis.pro, axis.field, pro))
        field = f"`{axis.field}`" if axis.field else ""
        yield (f"**{letter}**", axis.meaning, _symbol(axis.symbol), field, *sizes)
    for letter, meaning in STREAM_PAIR.items():
        yield (f"**{letter}**", meaning, "", "", "", "")


def _size(size, field, config):
    """An axis' size in a released model: a number, the numbers of its layers, or nothing."""
    if size is not None:
        return f"{size:,}"
    return " and ".join(str(ratio) for ratio in sorted(set(getattr(config, field)) - {0})) if field else ""


def _symbol(symbol):
    """The report's symbol as a formula: a subscript of several letters is upright."""
    upright = re.sub(r"_([a-z]{2,})", r"_{\\text{\1}}", symbol)
    return f"${upright}$" if symbol else ""


def _word_rows(known):
    """One row for each abbreviation, by the alphabet."""
    for short in sorted(ABBREVIATIONS, key=str.lower):
        words, number = ABBREVIATIONS[short].words, ABBREVIATIONS[short].notebook
        link = f"{number}, not there yet" if number else ""
        if number in known:
            link = known[number].link
        yield (short, words, link)
