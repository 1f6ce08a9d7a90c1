"""What the stepper does under a reader's hands, looked for in a real browser."""

from minidsv4.course.site.look import dead_links, event_faults

COUNT = "document.getElementById('count').textContent"
DEPTH = "walk.calls[walk.steps[walk.here()].call].depth"
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "ArrowUp": 38, "Home": 36, "End": 35}
EVERY_29TH_STEP = """[...walk.steps.keys()].filter((step) => step % 29 === 0 || step === walk.last).map((step) => {
  page.goTo(step);
  const lit = document.querySelector("#source .lit");
  const isRight = lit && Number(lit.dataset.line) === walk.steps[step].line;
  return isRight ? "" : `at step ${step + 1} the lit line is not the step's`;
}).filter(Boolean)"""
EVERY_LINK = """[...document.links].map((link) => link.href).concat(Object.values(STEPPER.functions)
  .map(({ notebook }) => new URL(`${STEPPER.notebooks}/${notebook}.html`, location).href))"""
PRESSED = (  # a key, and the step at which the reader then stands, from the first one on
    ("ArrowRight", 2),
    ("ArrowRight", 3),
    ("ArrowLeft", 2),
    ("Home", 1),
)


def faults(browser, index):
    """Sentences on what does not work on the page.

    browser  a Browser of minidsv4.course.site.browser
    index    path of the page's index.html
    """
    for part in (_keys, _over_and_out, _everywhere, _links, _address):
        browser.load(index.as_uri(), 1280)
        if browser.run("typeof page === 'undefined'"):
            yield "the page does not begin"
        else:
            yield from part(browser, index)
        yield from event_faults(browser.events, index.parent.as_uri())


def _keys(browser, index):
    """Sentences on keys that lead to another step than they should."""
    last = browser.run("walk.last") + 1
    for key, step in (*PRESSED, ("End", last), ("ArrowRight", last)):
        browser.press(key, KEYS[key])
        if (said := browser.run(COUNT)) != f"step {step} of {last}":
            yield f"after {key} the page says {said!r}, not step {step}"


def _over_and_out(browser, index):
    """Sentences where stepping over or out ends in a deeper function than it should."""
    for key, deeper in (("ArrowDown", 0), ("ArrowUp", -1)):
        browser.run("page.goTo(walk.firstOf(walk.calls.findIndex((call) => call.function === 'attention_layer')))")
        before = browser.run(DEPTH)
        browser.press(key, KEYS[key])
        if (after := browser.run(DEPTH)) - before != deeper:
            yield f"{key} leads from depth {before} to {after}"


def _everywhere(browser, index):
    """Sentences on steps that cannot be drawn, and on a lit line that is not the step's."""
    yield from browser.run(EVERY_29TH_STEP)


def _links(browser, index):
    """Sentences on links to notebooks that are not there, of whatever function."""
    yield from dead_links(browser.run(EVERY_LINK))


def _address(browser, index):
    """A sentence where the address of a step does not lead to it."""
    browser.load(f"{index.as_uri()}#step=200", 400)
    if not browser.run(COUNT).startswith("step 200 "):
        yield "the address #step=200 does not lead to step 200"
