"""The microscope: the shipped model's own tensors on a dozen texts, token by token, layer by layer, head by head.

    python -m minidsv4.course.microscope FOLDER

Everything is measured when the page is written, which takes some seconds.
"""

from minidsv4.config import LayerKind
from minidsv4.cost.baselines import at_own_widths
from minidsv4.course.microscope.measure import cache_growth, measured
from minidsv4.course.microscope.texts import SAMPLES
from minidsv4.course.pages import script, write_page
from minidsv4.dims import GLOSSARY
from minidsv4.train.ship import load_pretrained, pretrained_tokenizer

LETTERS = "TDHKWMCPUEANLV"
RATIOS = "compress_ratios"  # the field of M, which differs between layers
FLOAT32 = 4  # bytes of a number
PRECISION = (
    "The model runs in 64-bit floating point on its shipped weights. Attention weights and pooling shares are kept in "
    "255ths, rounded so that a row of window, entries and sink still sums to exactly 1: each is off by less than 0.4 "
    "percentage points. All other numbers are kept in 16 bits between the smallest and the largest of their tensor. "
    "Shares of pooled tokens are means over the channels of an entry; each channel has weights of its own."
)


def write_site(folder, notebooks="..", samples=SAMPLES):
    """Write the microscope as static files, `index.html` among them; they need no server and no network.

    folder     is made where it is not there; files of the same names in it are replaced
    notebooks  address of the folder of the course's pages, seen from there
    samples    the texts, Samples
    returns    the path of its index.html
    """
    model, tokenizer = load_pretrained(), pretrained_tokenizer()
    found = {sample.name: measured(model.double(), tokenizer, sample.text) for sample in samples}
    longest = max(len(text["tokens"]) for text in found.values())
    made = {f"texts/{name}.js": script(f"TEXT_{name}", text) for name, text in found.items()}
    made["data.js"] = script("MICROSCOPE", frame(model.float(), samples, longest) | {"notebooks": notebooks})
    return write_page("microscope", folder, made)


def frame(model, samples, longest):
    """What the page needs before any text: the texts' names, the layers' kinds, and the cache's bytes.

    model    a Model in float32, whose cache is weighed
    longest  tokens of the longest text
    """
    others = {
        one.name: one.cache_bytes(1, FLOAT32) for one in at_own_widths(model.config) if one.name in ("MHA", "MLA")
    }
    return {
        "texts": [{"name": one.name, "title": one.title, "look": one.look} for one in samples],
        "sizes": sizes(model.config),
        "kinds": [block.attn.kind.name for block in model.layers],
        "cache": cache_growth(model, longest),
        "others": others,
        "longest": longest,
        "axes": {letter: GLOSSARY[letter].meaning for letter in LETTERS},
        "precision": PRECISION,
    }


def sizes(config):
    """Sizes of the model by letter, the tokens per entry of both kinds, and the sum of a token's routing weights."""
    letters = {
        letter: getattr(config, axis.field) for letter, axis in GLOSSARY.items() if axis.field not in ("", RATIOS)
    }
    ratios = {kind.name: config.ratio_of(kind) for kind in (LayerKind.CSA, LayerKind.HCA)}
    return letters | ratios | {"scale": config.routed_scaling_factor}
