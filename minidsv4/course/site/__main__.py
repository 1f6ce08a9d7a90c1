"""`python -m minidsv4.course.site`: build the site, check its links, look at it in a browser."""

import argparse
import importlib.util
import sys

LACKING = "{} is not installed; `pip install 'minidsv4[site]'` adds it"


def main(words=None):
    """Build and check the site; the exit status is 0 where all holds, 1 for faults, 2 where it cannot be built."""
    parser = argparse.ArgumentParser(
        prog="python -m minidsv4.course.site", description="Build the course as static pages."
    )
    parser.add_argument("--no-look", action="store_true", help="do not open the pages in a browser")
    frames = parser.add_mutually_exclusive_group()
    frames.add_argument("--still", action="store_true", help="leave pictures still: no notebook runs")
    frames.add_argument("--moving", nargs="+", metavar="NAME", help="only these notebooks run, such as 01_attention")
    choice = parser.parse_args(words)
    for name in ("sphinx", "myst_nb", "furo", "latex2mathml", "websocket"):
        if importlib.util.find_spec(name) is None:
            parser.exit(2, LACKING.format(name) + "\n")
    from minidsv4.course import notebooks
    from minidsv4.course.site import build, links

    known = notebooks.every()
    if unknown := [name for name in choice.moving or [] if name not in known]:
        parser.exit(2, f"--moving: no notebook is called {', '.join(unknown)}; there are {', '.join(known)}\n")
    try:
        found = [*build.build(moves=[] if choice.still else choice.moving), *links.faults(build.SITE)]
    except ValueError as error:
        parser.exit(2, f"site: {error}\n")
    if not choice.no_look:
        found += look_at(build.SITE)
    for fault in found:
        print(f"fault: {fault}")
    n_pages = len(list(build.SITE.rglob("*.html")))
    print(f"{n_pages} pages in {build.SITE.name}/, {len(found)} faults; open {build.SITE.name}/index.html")
    return int(bool(found))


def look_at(site):
    """Faults that a browser finds on the pages; without a browser a sentence says so."""
    from minidsv4.course.site import browser, look

    program = browser.find()
    if program is None:
        print("no Chromium or Chrome is installed, so the look at the pages in a browser was left out")
        return []
    print("looking at every page in a browser")
    return look.faults(site, program)


if __name__ == "__main__":
    sys.exit(main())
