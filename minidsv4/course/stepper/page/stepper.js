// The page: draws the step at which the reader stands, and moves him by button, key, slider, outline and address.
"use strict";

const page = (() => {
  const data = window.STEPPER;
  const { make, entry } = drawing;
  const $ = (id) => document.getElementById(id);
  const branches = []; // of the outline, by call
  const OPEN_UP_TO = 60; // numbers of a value that is shown unfolded though it is not new
  let shownSource = -1;

  function equationsOf(call) {
    const numbers = data.functions[walk.calls[call].line].equations;
    return numbers.length ? ` (${numbers.join("), (")})` : "";
  }

  function drawSource(step) {
    const { call, line } = walk.steps[step];
    const listing = data.functions[walk.calls[call].line];
    const source = $("source");
    if (shownSource !== listing.first) {
      source.replaceChildren(...listing.lines.map((pieces, row) => lineOf(pieces, listing.first + row)));
      shownSource = listing.first;
    }
    const before = walk.before(step);
    const ran = before < 0 ? -1 : walk.steps[before].line;
    for (const row of source.children) {
      const number = Number(row.dataset.line);
      row.classList.toggle("lit", number >= line && number <= data.statements[line]);
      row.classList.toggle("ran", ran > 0 && number >= ran && number <= data.statements[ran]);
    }
    const lit = source.querySelector(".lit");
    if (lit.offsetTop < source.scrollTop || lit.offsetTop + 60 > source.scrollTop + source.clientHeight) {
      source.scrollTop = lit.offsetTop - source.clientHeight / 3;
    }
  }

  function lineOf(pieces, number) {
    const row = make("div");
    row.dataset.line = number;
    row.append(make("span", "number", String(number)));
    for (const [kind, text] of pieces) row.append(kind ? make("span", `k-${kind}`, text) : text);
    return row;
  }

  function drawWords(step) {
    const { call, note, result } = walk.steps[step];
    const listing = data.functions[walk.calls[call].line];
    const link = make("a", "", `notebook ${listing.notebook.replaceAll("_", " ")}`);
    link.href = `${data.notebooks}/${listing.notebook}.html`;
    $("words").replaceChildren(make("code", "", listing.name), `: ${listing.words} More in `, link, ".");
    const end = result === undefined ? "" : "The function has run; what it returns stands first among the values.";
    $("note").textContent = step === walk.last ? lastWords() : note || end;
  }

  function lastWords() {
    const row = walk.values[walk.steps[walk.last].result];
    const logits = row.numbers.slice(-row.shape[1]);
    const best = logits.indexOf(Math.max(...logits));
    return `Done: the last row holds the logits of the next token. The largest is ${logits[best]}, of the word `
      + `${data.words[best]}; the weights are random, so this says nothing about Python.`;
  }

  function drawValues(step) {
    const { changed, result, call } = walk.steps[step];
    const known = [...walk.variables(step)].reverse();
    const entries = [];
    if (result !== undefined) entries.push(entry("returned", result, true, true));
    for (const [name, row] of known) if (name in changed) entries.push(entry(name, row, true, true));
    for (const [name, row] of known) {
      const { numbers } = walk.values[row];
      if (!(name in changed)) entries.push(entry(name, row, false, numbers && numbers.length <= OPEN_UP_TO));
    }
    $("values").replaceChildren(...entries);
    $("valuesTitle").textContent = `Values in ${walk.calls[call].function}`;
  }

  function drawStack(step) {
    const running = walk.stack(step);
    const parts = running.map((call, place) => {
      if (place === running.length - 1) return make("span", "here code", walk.calls[call].label);
      const button = make("button", "code", walk.calls[call].label);
      button.title = "Back to the line that calls";
      button.onclick = () => goTo(walk.calls[running[place + 1]].from);
      return button;
    });
    $("stack").replaceChildren(...parts.flatMap((part, place) => (place ? [" › ", part] : [part])));
  }

  function drawOutline(step) {
    for (const current of document.querySelectorAll("#tree [aria-current]")) current.removeAttribute("aria-current");
    const running = walk.stack(step);
    for (const call of running) if (branches[call].details) branches[call].details.open = true;
    const { button } = branches[running[running.length - 1]];
    button.setAttribute("aria-current", "step");
    const tree = $("tree");
    if (button.offsetTop < tree.scrollTop || button.offsetTop + 30 > tree.scrollTop + tree.clientHeight) {
      tree.scrollTop = button.offsetTop - tree.clientHeight / 2;
    }
  }

  function buildOutline() {
    const lists = [];
    walk.calls.forEach((call, number) => {
      const button = make("button", "code", call.label + equationsOf(number));
      button.onclick = () => goTo(walk.firstOf(number));
      const hasCalls = number + 1 < walk.calls.length && walk.calls[number + 1].depth > call.depth;
      const item = make("li", hasCalls ? "" : "leaf");
      branches[number] = { button };
      lists[call.depth + 1] = make("ul");
      if (hasCalls) {
        const details = make("details");
        details.open = call.depth < 2;
        details.append(make("summary"), lists[call.depth + 1]);
        details.firstChild.append(button);
        branches[number].details = details;
        item.append(details);
      } else {
        item.append(button);
      }
      if (call.depth === 0) {
        lists[0] = make("ul");
        $("tree").append(lists[0]);
      }
      lists[call.depth].append(item);
    });
  }

  // The menu: where each equation is computed for the first time.
  function buildMenu() {
    $("jump").append(new Option("an equation …", ""));
    const first = new Map();
    walk.calls.forEach((call, number) => {
      for (const equation of data.functions[call.line].equations) {
        if (!first.has(equation)) first.set(equation, number);
      }
    });
    for (const [equation, call] of [...first].sort(([a], [b]) => a - b)) {
      $("jump").append(new Option(`(${equation}) ${walk.calls[call].function}`, String(walk.firstOf(call))));
    }
    $("jump").onchange = () => { if ($("jump").value) goTo(Number($("jump").value)); };
  }

  function describeExample() {
    const text = make("p");
    text.append("The text is ", make("code", "", data.ids.map((id) => data.words[id]).join(" ")),
      `, token ids ${data.ids.join(", ")}. Weights are random numbers of seed ${data.seed}: the model has learned `
      + "nothing, and only the way of computing means something. Its three layers are a sliding window, Compressed "
      + "Sparse Attention (CSA, 2 tokens per entry) and Heavily Compressed Attention (HCA, 3 tokens per entry).");
    const named = data.config.map(([letter, meaning, size]) => `${letter} = ${size} (${meaning})`);
    const sizes = make("p", "", `Sizes: ${named.join("; ")}.`);
    const left = make("p", "", "The walk follows the last token. A loop shows its first and its last pass; what it "
      + "calls is followed in its last pass; the loop over layers is followed in every pass. Where one line calls a "
      + "function for every token, the last call is followed. A note says each time what is left out. Numbers are "
      + "rounded to four significant digits; the computation itself runs in 64-bit floating point.");
    $("example").append(text, sizes, left);
  }

  function draw() {
    const step = walk.here();
    drawSource(step);
    drawWords(step);
    drawValues(step);
    drawStack(step);
    drawOutline(step);
    $("place").value = step;
    $("count").textContent = `step ${step + 1} of ${walk.last + 1}`;
    for (const id of ["first", "back"]) $(id).disabled = step === 0;
    for (const id of ["into", "over", "out", "last"]) $(id).disabled = step === walk.last;
  }

  function goTo(step) {
    walk.go(step);
    $("jump").value = "";
    history.replaceState(null, "", `#step=${walk.here() + 1}`);
    draw();
  }

  const ways = {
    first: () => 0, back: walk.back, into: walk.into, over: walk.over, out: walk.out, last: () => walk.last,
  };
  const keys = {
    ArrowRight: ways.into, ArrowLeft: ways.back, ArrowDown: ways.over, ArrowUp: ways.out,
    Home: ways.first, End: ways.last,
  };

  function pressed(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || /INPUT|SELECT/.test(event.target.tagName)) return;
    const way = event.shiftKey && event.key === "ArrowDown" ? walk.backOver : keys[event.key];
    if (!way) return;
    event.preventDefault();
    goTo(way());
  }

  function readAddress() {
    const named = /^#step=(\d+)$/.exec(location.hash);
    walk.go(named ? Number(named[1]) - 1 : 0);
    draw();
  }

  buildOutline();
  buildMenu();
  describeExample();
  $("place").max = walk.last;
  $("place").oninput = () => goTo(Number($("place").value));
  for (const [id, way] of Object.entries(ways)) $(id).onclick = () => goTo(way());
  addEventListener("keydown", pressed);
  addEventListener("hashchange", readAddress);
  readAddress();
  return { goTo };
})();
