// What moves on a page: pictures behind sliders, and questions that hide what follows until they are answered.
"use strict";

function element(kind, facts = {}, children = []) {
  const made = Object.assign(document.createElement(kind), facts);
  made.append(...children);
  return made;
}

// --- what the browser remembers; a page in a folder may be refused it ---

function remembered(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // then it is forgotten with the page
  }
}

// --- pictures behind sliders ---

function explore(figure) {
  const told = JSON.parse(figure.querySelector("script").textContent);
  const picture = figure.querySelector("img");
  const places = told.controls.map((control) => control.start);

  function frameAt(where) {
    const place = told.controls.reduce((sum, control, n) => sum * control.labels.length + where[n], 0);
    return told.frames[place];
  }

  function fetchNeighbours() {
    told.controls.forEach((control, n) => {
      for (const step of [-1, 1]) {
        const where = [...places];
        where[n] += step;
        if (where[n] >= 0 && where[n] < control.labels.length) {
          new Image().src = told.folder + frameAt(where).file;
        }
      }
    });
  }

  function show(n, place) {
    places[n] = place;
    const frame = frameAt(places);
    picture.src = told.folder + frame.file;
    picture.alt = frame.alt;
    picture.width = frame.width;
    picture.height = frame.height;
    fetchNeighbours();
  }

  const rows = told.controls.map((control, n) => control.kind === "menu"
    ? menu(control, (place) => show(n, place))
    : slider(control, (place) => show(n, place)));
  const form = element("div", { className: "controls" }, rows);
  form.addEventListener("focusin", fetchNeighbours, { once: true });
  const few = told.controls.filter((control) => control.labels.length < control.of);
  for (const control of few) {
    const text = `${control.name}: ${control.labels.length} of ${control.of} values are drawn here, all in the lab`;
    form.append(element("p", { className: "note", textContent: text }));
  }
  figure.prepend(form);
}

function slider(control, follow) {
  const said = element("output", { textContent: control.labels[control.start] });
  const input = element("input", { type: "range", min: 0, max: control.labels.length - 1, step: 1 });
  input.value = control.start;
  const tell = () => {
    said.textContent = control.labels[input.value];
    input.setAttribute("aria-valuetext", said.textContent);
  };
  input.addEventListener("input", () => {
    tell();
    follow(Number(input.value));
  });
  tell();
  return element("label", {}, [element("span", { textContent: control.name }), input, said]);
}

function menu(control, follow) {
  const options = control.labels.map((label, value) => element("option", { value, textContent: label }));
  const input = element("select", {}, options);
  input.selectedIndex = control.start;
  input.addEventListener("change", () => follow(input.selectedIndex));
  return element("label", {}, [element("span", { textContent: control.name }), input]);
}

// --- questions ---

const WHOLE = "minidsv4: pages whole";
const ANSWERS = `minidsv4: answers on ${location.pathname.split("/").slice(-2).join("/")}`;
const questions = [];

function behind(question) {
  const found = [];
  const page = question.closest("article");
  for (let node = question.closest(".cell") || question; node !== page; node = node.parentElement) {
    for (let next = node.nextElementSibling; next; next = next.nextElementSibling) {
      found.push(next);
    }
  }
  return found;
}

function hideBehind() {
  questions.forEach((asked) => {
    asked.question.querySelector("details").hidden = !asked.answered && !remembered(WHOLE);
  });
  document.querySelectorAll(".behind").forEach((node) => node.classList.remove("behind"));
  questions.forEach((asked) => asked.curtain.remove());
  const open = remembered(WHOLE) ? undefined : questions.find((asked) => !asked.answered);
  if (open) {
    open.question.append(open.curtain);
    behind(open.question).forEach((node) => node.classList.add("behind"));
  }
}

function curtain() {
  const whole = element("button", { type: "button", textContent: "Show the whole page" });
  whole.addEventListener("click", showAll);
  return element("p", { className: "curtain" }, ["Answer before you read on. ", whole]);
}

function showAll() {
  questions.forEach((asked) => { asked.answered = true; });
  hideBehind();
}

function settle(asked, right) {
  asked.answered = true;
  asked.form.remove();
  asked.question.querySelector("details").open = true;
  asked.verdict.textContent = right ? "✓ Right." : "✗ Not so.";
  asked.verdict.className = right ? "verdict right" : "verdict wrong";
  const answers = remembered(ANSWERS) || {};
  answers[questions.indexOf(asked)] = right;
  remember(ANSWERS, answers);
  hideBehind();
}

function numberIn(text, unit) {
  let typed = text.trim();
  if (unit && typed.endsWith(unit)) {
    typed = typed.slice(0, -unit.length).trim();
  }
  if (/^[+-]?\d{1,3}(,\d{3})+(\.\d*)?$/.test(typed)) {
    typed = typed.replaceAll(",", "");
  }
  return typed === "" || !Number.isFinite(Number(typed)) ? null : Number(typed);
}

function choices(asked) {
  const list = asked.question.querySelector("ul");
  const buttons = [...list.children].map((item, place) => {
    const button = element("button", { type: "button" });
    button.append(...(item.querySelector(":scope > p") || item).cloneNode(true).childNodes);
    button.addEventListener("click", () => settle(asked, place === Number(asked.question.dataset.right)));
    return button;
  });
  list.hidden = true;
  return buttons;
}

function field(asked) {
  const facts = asked.question.dataset;
  const input = element("input", { type: "text", inputMode: "decimal", placeholder: "a number" });
  input.setAttribute("aria-label", facts.unit ? `your answer, in ${facts.unit}` : "your answer, a number");
  const note = element("span", { textContent: facts.unit });
  const button = element("button", { type: "submit", textContent: "answer" });
  const form = element("form", {}, [input, " ", note, " ", button]);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const answer = numberIn(input.value, facts.unit);
    if (answer === null) {
      note.textContent = `${facts.unit} (type a number, such as 12 or 0.5)`.trim();
    } else {
      settle(asked, Math.abs(answer - Number(facts.number)) <= Number(facts.within));
    }
  });
  return [form];
}

function ask(question) {
  const asked = { question, answered: false, curtain: curtain() };
  questions.push(asked);
  asked.verdict = element("p", { className: "verdict" });
  asked.verdict.setAttribute("role", "status");
  const parts = "right" in question.dataset ? choices(asked) : field(asked);
  const told = element("button", { type: "button", className: "told", textContent: "tell me the answer" });
  told.addEventListener("click", () => settle(asked, false));
  asked.form = element("div", { className: "answers" }, [...parts, told]);
  const details = question.querySelector("details");
  details.before(asked.form, asked.verdict);
}

function recall() {
  const answers = remembered(ANSWERS) || {};
  questions.forEach((asked, place) => {
    if (place in answers) {
      settle(asked, answers[place]);
    }
  });
}

function wholePagesSwitch() {
  const box = element("input", { type: "checkbox", checked: Boolean(remembered(WHOLE)) });
  box.addEventListener("change", () => {
    remember(WHOLE, box.checked);
    hideBehind();
  });
  const again = element("button", { type: "button", textContent: "ask me again" });
  again.addEventListener("click", () => {
    remember(ANSWERS, {});
    location.reload();
  });
  const label = element("label", {}, [box, " show pages whole, without waiting for answers"]);
  document.querySelector(".lab-hint")?.after(element("p", { className: "whole" }, [label, " ", again]));
}

function showTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.closest(".behind")) {
    showAll();
    target.scrollIntoView();
  }
}

// --- what is wider than the window ---

// A sentence stands above a picture or a table as long as a part of it is out of sight.
function sayWhereMoreIs(wide) {
  const kind = wide.matches("figure") ? "picture" : "table";
  const said = element("p", { className: "note", textContent: `The ${kind} goes on: move it sideways →` });
  wide.before(said);
  new ResizeObserver(() => { said.hidden = wide.scrollWidth <= wide.clientWidth + 1; }).observe(wide);
}

// --- keyboard ---

function openSidebarsByKey() {
  for (const label of document.querySelectorAll("label[for='__navigation'], label[for='__toc']")) {
    label.tabIndex = 0;
    label.setAttribute("role", "button");
    label.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        label.click();
      }
    });
  }
  for (const wide of document.querySelectorAll(".table-wrapper, div.highlight > pre, figure.picture")) {
    wide.tabIndex = 0;
  }
}

document.querySelectorAll("figure.explore").forEach(explore);
document.querySelectorAll("div.predict").forEach(ask);
if (questions.length) {
  wholePagesSwitch();
}
document.querySelectorAll("figure.picture, .table-wrapper").forEach(sayWhereMoreIs);
recall();
hideBehind();
showTarget();
window.addEventListener("hashchange", showTarget);
openSidebarsByKey();
