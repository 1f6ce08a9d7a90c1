"""A Sphinx extension that writes formulas as MathML, which every browser draws itself: no script, no network.

The letters are those of STIX Two Math, which lies in static/ with its licence.
"""

import re
from html import escape

from latex2mathml.converter import convert

HAT = "<mo>&#x0005E;</mo></mover>"  # stands in the letter below it
HIGH_HAT = '<mo stretchy="false">&#x002C6;</mo></mover>'
PRIMED = re.compile(r"<msup>(<mi>[^<]*</mi>)<mi>(&#x02032;)</mi></msup>")
PRIME = r'<mrow>\1<mo lspace="0" rspace="0">\2</mo></mrow>'  # stands high as it is: it needs no raising
SLASH = "<mo>&#x0002F;</mo>"
NARROW_SLASH = '<mo lspace="0" rspace="0">&#x0002F;</mo>'


def formula(latex, display):
    """A formula as a MathML element, which a screen reader reads.

    latex    the formula as the notebook writes it, without dollar signs
    display  "inline", or "block" for one on a line of its own
    raises   ValueError naming a formula that latex2mathml cannot read
    """
    try:
        element = convert(latex, display=display)
    except Exception as error:  # it has a dozen classes of errors
        raise ValueError(f"the formula {latex!r} cannot be written as MathML: {error!r}") from error
    if "\\" in element:  # a command that it does not know stays as it is
        raise ValueError(f"the formula {latex!r} cannot be written as MathML: one of its commands is not known")
    element = PRIMED.sub(PRIME, element.replace(HAT, HIGH_HAT).replace(SLASH, NARROW_SLASH))
    return element.replace("<math ", f'<math alttext="{escape(latex.strip(), quote=True)}" ', 1)


def _visit_inline(writer, node):
    from docutils.nodes import SkipNode

    writer.body.append(f'<span class="math">{formula(node.astext(), "inline")}</span>')
    raise SkipNode


def _visit_block(writer, node):
    from docutils.nodes import SkipNode

    writer.body.append(f'<div class="math" tabindex="0">{formula(node.astext(), "block")}</div>')
    raise SkipNode


def setup(app):
    """Register the renderer with Sphinx; returns what Sphinx asks an extension for."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
