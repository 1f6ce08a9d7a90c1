"""What the microscope does under a reader's hands, looked for in a real browser."""

from minidsv4.course.site.look import dead_links, event_faults

KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "ArrowUp": 38, "]": 221, "[": 219, ".": 190, ",": 188}
START = "#text=function&token=30&layer=1&head=mean"
SHOWN = """document.querySelector("#tokens .chosen")?.id === "token30"
  && document.querySelector("#head").value === "mean"
  && document.querySelector("#layers [aria-pressed=true]").dataset.layer === "1" """
PRESSED = (  # a key, and the address to which it leads from START
    ("ArrowRight", "#text=function&token=31&layer=1&head=mean"),
    ("ArrowLeft", "#text=function&token=29&layer=1&head=mean"),
    ("ArrowDown", "#text=function&token=30&layer=2&head=mean"),
    ("ArrowUp", "#text=function&token=30&layer=0&head=mean"),
    ("]", "#text=function&token=30&layer=1&head=0"),
    ("[", START),
)
EVERY_TEXT = """(async () => {
  const wrong = [];
  const links = new Set();
  for (const { name } of window.MICROSCOPE.texts) {
    const place = window.MICROSCOPE.texts.findIndex((text) => text.name === name);
    for (const layer of [place % 6, (place + 3) % 6]) {
      location.hash = `#text=${name}&token=40&layer=${layer}&head=${layer}`;
      const end = performance.now() + 20000;
      const there = () => document.querySelector("#summary").textContent.includes(`In layer ${layer} head ${layer} `)
        && document.querySelector("#text").value === name;
      while (!there() && performance.now() < end) await new Promise((done) => setTimeout(done, 5));
      const cards = [...document.querySelectorAll("main section")].filter((card) => !card.childElementCount);
      if (!there() || cards.length) wrong.push(`text ${name}, layer ${layer} cannot be shown`);
      for (const { href } of document.links) links.add(href);
    }
  }
  return [wrong, [...links]];
})()"""


def faults(browser, index):
    """Sentences on what does not work on the page.

    browser  a Browser of minidsv4.course.site.browser
    index    path of the page's index.html
    """
    for part in (_keys, _clicks, _text, _views):
        browser.load(f"{index.as_uri()}{START}", 1280)
        browser.wait_until(SHOWN)
        yield from part(browser)
        yield from event_faults(browser.events, index.parent.as_uri())


def _keys(browser):
    """Sentences on keys that lead to another address than they should."""
    for key, address in PRESSED:
        browser.run(f"location.hash = {START!r}")
        browser.wait_until(SHOWN)
        browser.press(key, KEYS[key])
        if (found := browser.run("location.hash")) != address:
            yield f"{key} leads to {found}, not to {address}"


def _clicks(browser):
    """Sentences on what does not follow a click on a token, a head and an entry."""
    clicks = (
        ("a token", "#token12", "location.hash.includes('token=12&')"),
        ("a head", "#shares .share:nth-of-type(3) button", "location.hash.endsWith('head=1')"),
        ("an entry", "#entries .cell", "document.querySelector('#entries .cell').ariaPressed === 'true'"),
    )
    for name, target, so in clicks:
        browser.run(f"document.querySelector({target!r}).click()")
        if not browser.run(f"new Promise((done) => setTimeout(() => done({so}), 100))"):
            yield f"a click on {name} changes nothing"


def _text(browser):
    """A sentence where the key of the next text does not open it."""
    browser.press(".", KEYS["."])
    try:
        browser.wait_until("location.hash.startsWith('#text=bug&')")
    except TimeoutError:
        yield "the key of the next text does not open it"


def _views(browser):
    """Sentences on texts and layers that cannot be shown, and on links on them that lead to no page."""
    wrong, links = browser.run(EVERY_TEXT)
    yield from wrong
    yield from dead_links(links)
