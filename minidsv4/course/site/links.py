"""Whether every link of a folder of pages leads somewhere, and nothing is loaded from elsewhere."""

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page offers and asks for: `anchors`, `links` (what a reader may follow) and `loads` (what it needs)."""

    def __init__(self, text):
        super().__init__()
        self.anchors = set()
        self.links = []
        self.loads = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        self.anchors |= {facts[key] for key in ("id", "name") if facts.get(key)}
        if facts.get("src"):
            self.loads.append(facts["src"])
        if facts.get("href"):
            follows = tag == "a" or facts.get("rel") in ("index", "search", "next", "prev", "canonical", "author")
            (self.links if follows else self.loads).append(facts["href"])


def faults(site):
    """What does not hold together in a folder of pages.

    site     the folder
    returns  a sentence for each link that leads nowhere and each thing that a page would load from elsewhere
    """
    site = Path(site).resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for address in page.loads:
            if urlsplit(address).scheme not in ("", "data") or address.startswith("//"):
                found.append(f"{name} loads {address[:80]}, which lies outside the site")
        for address in dict.fromkeys([*page.links, *page.loads]):
            if fault := _fault(path, address, pages):
                found.append(f"{name}: {fault}")
    return found


def _fault(path, address, pages):
    """What is wrong with an address on a page, in words; None for a good one and for one that leaves the site."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
    if not target.is_file():
        return f"{address} leads to no file"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return f"{address} leads to no place in its page"
    return None
