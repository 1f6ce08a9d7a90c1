"""Colours, line styles and sizes that every picture of the course shares.

Five colours have a fixed meaning everywhere: query blue, key orange, compressed green, sink purple, masked grey. They
are taken from Okabe and Ito's set for colour-blind readers and stand out from white by a contrast of 3:1 or more.
"""

import matplotlib

COLOURS = {
    "query": "#0072B2",
    "key": "#D55E00",
    "compressed": "#009E73",
    "sink": "#B8609A",  # Okabe and Ito's purple, a little darker: theirs reaches 3.0:1 only just
    "masked": "#8C8C8C",
}

QUERY = COLOURS["query"]
KEY = COLOURS["key"]
COMPRESSED = COLOURS["compressed"]
SINK = COLOURS["sink"]
AMBER = "#FFD877"  # of the part of the map that is lit
AMBER_EDGE = "#B36B00"
INK = "#222222"
PALE_INK = "#6E6E6E"
PAPER = "#F4F4F2"
GREY = "#9A9A9A"
SEQUENTIAL = "cividis"
DPI = 160  # pixels an inch in a stored picture; it is shown at 100 an inch, so it stays sharp on fine screens

STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=list(COLOURS.values()), linestyle=["-", "--", "-.", ":", "-"]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "figure.figsize": (6.0, 3.0),
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same letters
    "font.size": 9,
    "image.cmap": SEQUENTIAL,
    "legend.frameon": False,
    "savefig.bbox": None,
    "savefig.dpi": DPI,
    "svg.fonttype": "path",
    "svg.hashsalt": "minidsv4",
}

# How `figure.suptitle` writes the finding over several panels; one panel has it as its own title.
HEADING = {"fontsize": 10, "fontweight": "bold", "x": 0.01, "ha": "left"}


def use_style():
    """Make the shared style matplotlib's default for this process; the backend stays as it is."""
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(STYLE)
