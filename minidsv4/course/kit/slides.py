"""A notebook as slides: one HTML file with its own style and script, which needs no network.

A slide is a Markdown cell with the code cells after it; a heading within a cell begins one too. Formulas are written as
MathML where latex2mathml is installed (the extra `site` brings it), and as they are typed elsewhere.
"""

import re
from html import escape
from pathlib import Path

import nbformat

from minidsv4.course import notebooks

FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$(?!\d)", re.DOTALL)
CODE = re.compile(r"(?s)```.*?```|`[^`\n]+`")
STYLE = """
body { margin: 0; font: 1.25rem/1.5 sans-serif; color: #111; background: #fff; }
section { display: none; box-sizing: border-box; min-height: 100vh; max-width: 60rem; margin: auto; padding: 2rem; }
section.shown { display: block; }
pre { font-size: 0.95rem; line-height: 1.35; padding: 0.8rem; background: #f4f4f4; overflow-x: auto; }
pre.output { background: none; border-left: 0.25rem solid #0072b2; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 1rem; display: block; overflow-x: auto; }
td, th { border: 1px solid #999; padding: 0.2rem 0.6rem; text-align: left; }
.anchor-link { display: none; }
footer { position: fixed; right: 1rem; bottom: 0.5rem; font-size: 0.9rem; color: #555; }
@media print { section { display: block; break-after: page; } footer { display: none; } }
"""
SCRIPT = """
const slides = [...document.querySelectorAll("section")];
const place = document.querySelector("footer");
function show(number) {
  const to = Math.min(Math.max(number, 0), slides.length - 1);
  slides.forEach((slide, at) => slide.classList.toggle("shown", at === to));
  place.textContent = `${to + 1} of ${slides.length}`;
  history.replaceState(null, "", `#${to + 1}`);
  window.scrollTo(0, 0);
}
const at = () => slides.findIndex((slide) => slide.classList.contains("shown"));
document.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, PageDown: 1, ArrowLeft: -1, PageUp: -1 }[event.key];
  if (step) { event.preventDefault(); show(at() + step); }
  if (event.key === "Home") show(0);
  if (event.key === "End") show(slides.length - 1);
});
show((parseInt(location.hash.slice(1)) || 1) - 1);
"""


def write_slides(name, out=None):
    """Write a notebook as slides.

    name     such as "01" or "01_attention"
    out      the file; NAME.slides.html in this folder if not given
    returns  its path
    raises   ValueError for a name that is no notebook
    """
    known = notebooks.every()
    fitting = [other for other in known if other == name or other.startswith(f"{name}_")]
    if len(fitting) != 1:
        raise ValueError(f"slides: {name!r} is no notebook; there are {', '.join(known)}")
    path = Path(out or f"{fitting[0].replace('/', '_')}.slides.html")
    path.write_text(page(nbformat.read(known[fitting[0]], as_version=4), fitting[0]), encoding="utf-8")
    return path


def page(notebook, title):
    """The HTML of a notebook's slides."""
    parts = "".join(f"<section>\n{slide}</section>\n" for slide in slides(notebook))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = f"{parts}<footer></footer>\n<script>{SCRIPT}</script>"
    top = f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{STYLE}</style></head>'
    return f"{top}\n<body>\n{body}\n</body>\n</html>\n"


def slides(notebook):
    """The HTML of each slide."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found += [markdown(part) for part in re.split(r"(?m)^(?=## )", cell.source) if part.strip()]
        else:
            html = code(cell)
            found[-1:] = [found[-1] + html] if found else [html]
    return found


def markdown(text):
    """The HTML of Markdown, with its formulas."""
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    kept = []

    def keep(html):
        kept.append(html)
        return f"kept{len(kept) - 1}here"

    hidden = CODE.sub(lambda found: keep(found[0]), text)  # a dollar in code begins no formula
    spelled = FORMULA.sub(lambda found: keep(formula(found[1] or found[2], found[1] is not None)), hidden)
    for number, html in enumerate(kept):
        if html.startswith("`"):
            spelled = spelled.replace(f"kept{number}here", html)
    html = markdown2html_mistune(spelled)
    return re.sub(r"kept(\d+)here", lambda found: kept[int(found[1])], html)


def formula(latex, display):
    """A formula as MathML, or as it is typed where nothing can make MathML of it."""
    try:
        from latex2mathml.converter import convert

        return convert(latex, display="block" if display else "inline")
    except Exception:  # it is not there, or has one of its dozen errors
        return f"<code>{escape(latex)}</code>"


def code(cell):
    """The HTML of a code cell, its source left out where the reader sees its output only."""
    source = "" if notebooks.is_folded(cell) else f"<pre><code>{escape(cell.source)}</code></pre>\n"
    return source + "".join(output(one) for one in cell.outputs)


def output(one):
    """The HTML of an output: a picture with its words, Markdown, or text."""
    if one.output_type == "stream":
        return f'<pre class="output">{escape(one.text)}</pre>\n'
    if one.output_type == "error":
        return f'<pre class="output">{escape(one.ename)}: {escape(one.evalue)}</pre>\n'
    if "image/png" in one.data:
        alt = escape(one.metadata.get("image/png", {}).get("alt", ""), quote=True)
        return f'<img alt="{alt}" src="data:image/png;base64,{one.data["image/png"].strip()}">\n'
    if "text/markdown" in one.data:
        return markdown(one.data["text/markdown"])
    return f'<pre class="output">{escape(one.data.get("text/plain", ""))}</pre>\n'
