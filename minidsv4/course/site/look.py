"""What a reader would stumble over, looked for on every page of the site in a real browser."""

import importlib
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from minidsv4.course.site import first
from minidsv4.course.site.browser import Browser

WIDTHS = (400, 1280)  # pixels: a telephone, a desk
SCHEMES = ("light", "dark")
KEYS = {  # of a control: the one that goes on, the one that goes back, each with its code
    "slider": (("ArrowRight", 39), ("ArrowLeft", 37)),
    "menu": (("ArrowDown", 40), ("ArrowUp", 38)),
}
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
LOADED = """Promise.all([...document.images].map((image) => {
  image.loading = "eager";
  return image.decode().then(() => "", () => image.src);
})).then((found) => found.filter(Boolean))"""
# Words that hardly stand out from what lies behind them: a contrast below 3:1 (W3C's formula), a few examples.
PALE = """(() => {
  const numbers = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const rgb = numbers(getComputedStyle(node).backgroundColor);
      if (rgb.length === 3 || rgb[3] === 1) { return rgb; }
    }
    return [255, 255, 255];
  };
  const found = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode() && found.size < 3) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !node.checkVisibility({ opacityProperty: true }) || node.closest("svg")) {
      continue;
    }
    const front = numbers(getComputedStyle(node).color);
    const [low, high] = [light(front), light(behind(node))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 3) {
      found.add(`'${walk.currentNode.data.trim().slice(0, 30)}' has a contrast of ${ratio.toFixed(1)} to 1 only`);
    }
  }
  return [...found];
})()"""
ANSWER = """(question) => {
  const facts = question.dataset;
  if ("right" in facts) {
    question.querySelectorAll(".answers > button:not(.told)")[Number(facts.right)].click();
  } else {
    question.querySelector(".answers input").value = facts.number;
    question.querySelector(".answers form").requestSubmit();
  }
}"""
HIDES = """(() => {
  const nodes = [...document.querySelectorAll(".behind")];
  return nodes.length > 0 && nodes.every((node) => !node.checkVisibility());
})()"""
SHOW_ALL = "document.querySelector('.curtain button')?.click()"
CONTROLS = "document.querySelectorAll('.controls input, .controls select')"
FOCUS = """(control) => {
  control.focus();
  const isMenu = control.tagName === "SELECT";
  return isMenu ? [control.length, control.selectedIndex, "menu"]
    : [Number(control.max) + 1, Number(control.value), "slider"];
}"""
STATE = """(control) => {
  const picture = control.closest("figure").querySelector("img");
  return [control.value, picture.src + picture.alt];
}"""
WORD = "quantisation"


def faults(site, program):
    """Open every page at both widths, light and dark, and use what moves on it.

    site     folder of the pages
    program  path of the browser
    returns  a sentence for each fault
    """
    site = Path(site).resolve()
    found = []
    with Browser(program) as browser:
        for path in sorted(site.rglob("*.html")):
            name = path.relative_to(site).as_posix()
            for width in WIDTHS:
                found += [f"{name} at {width} px{fault}" for fault in page_faults(browser, path, site, width)]
        found += search_faults(browser, site)
        found += tool_faults(browser, site)
    return found


def tool_faults(browser, site):
    """What the microscope and the stepper do wrong under a reader's hands, as their own look.py finds it."""
    for name, module in first.tools().items():
        index = site / name / "index.html"
        if index.exists():
            own = importlib.import_module(f"{module.__name__}.look")
            yield from (f"{name}: {fault}" for fault in own.faults(browser, index))


def page_faults(browser, path, site, width):
    """What is wrong with one page at a width, a sentence each; in a wide window what moves is used as well."""
    browser.load(path.as_uri(), width)
    if width == WIDTHS[-1]:
        yield from (f": {fault}" for fault in moving_faults(browser))
    browser.run(SHOW_ALL)
    for address in browser.run(LOADED):
        yield f": the picture {address} cannot be shown"
    for scheme in SCHEMES:
        browser.paint(scheme)
        if (over := browser.run(WIDER)) > 0:
            yield f", {scheme}: the page is {over} pixels wider than the window"
        for words in browser.run(PALE):
            yield f", {scheme}: {words}"
    yield from (f": {fault}" for fault in event_faults(browser.events, site.as_uri()))


def dead_links(addresses):
    """Those addresses of files that lead to no file, a sentence each."""
    for address in sorted(set(addresses)):
        parts = urlsplit(address)
        if parts.scheme == "file" and not Path(url2pathname(parts.path)).is_file():
            yield f"a link leads to no file: {address}"


def event_faults(events, root):
    """Errors of scripts, failed requests and requests that leave the folder root, a sentence each."""
    for event in events:
        method = event.get("method")
        params = event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            yield f"a script stopped: {details.get('exception', {}).get('description', details['text'])}"
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            yield f"a script reports: {[value.get('value') for value in params['args']]}"
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            yield f"the browser reports: {params['entry']['text']} {params['entry'].get('url', '')}"
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            yield f"a request failed: {params['errorText']}"
        elif method == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith((f"{root}/", "data:", "about:", "blob:")):
                yield f"a request leaves the folder: {address}"


def moving_faults(browser):
    """Sliders that do not move by keyboard, and questions that do not hide or do not answer, a sentence each."""
    yield from question_faults(browser)
    browser.run(SHOW_ALL)
    n_controls = browser.run(f"{CONTROLS}.length")
    for place in range(n_controls):
        if not _moves(browser, f"{CONTROLS}[{place}]"):
            yield f"slider or menu {place + 1} does not change its picture by an arrow key"


def _moves(browser, control):
    """True where an arrow key changes a slider or a menu, and some place of it the picture with its words."""
    n_places, place, keys = browser.run(f"({FOCUS})({control})")
    before = browser.run(f"({STATE})({control})")
    last = before
    for _ in range(n_places):
        browser.press(*KEYS[keys][place == n_places - 1])
        last = browser.run(f"({STATE})({control})")
        if last[1] != before[1]:
            break
    return all(new != old for new, old in zip(last, before))


def question_faults(browser):
    """Questions of the open page that hide nothing or stay open when they are answered, a sentence each."""
    n_questions = browser.run("document.querySelectorAll('div.predict').length")
    for place in range(n_questions):
        question = f"document.querySelectorAll('div.predict')[{place}]"
        if browser.run(f"!{question}.querySelector('.curtain') || !({HIDES})"):
            yield f"question {place + 1} does not hide what follows"
        if browser.run(f"!{question}.checkVisibility() || !{question}.querySelector('.answers')"):
            yield f"question {place + 1} cannot be answered"
            return
        browser.run(f"({ANSWER})({question})")
        if not browser.run(f"{question}.querySelector('details').open && !{question}.querySelector('.answers')"):
            yield f"question {place + 1} does not show its answer"
        if (said := browser.run(f"{question}.querySelector('.verdict').textContent")) != "✓ Right.":
            yield f"question {place + 1} says {said!r} to the right answer"
    if n_questions and browser.run("document.querySelector('.behind') !== null"):
        yield "something stays hidden after the last answer"


def search_faults(browser, site):
    """A search that does not find a word of the course, a sentence."""
    browser.load(f"{(site / 'search.html').as_uri()}?q={WORD}", WIDTHS[-1])
    try:
        browser.wait_until("document.querySelectorAll('#search-results li a').length > 0")
    except TimeoutError:
        yield f"search.html: the search does not find {WORD!r}"
    yield from (f"search.html: {fault}" for fault in event_faults(browser.events, site.as_uri()))
