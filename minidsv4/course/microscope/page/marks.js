// Small parts of the page: elements, bars, tables of numbers, and the coloured text.
"use strict";

const { sizes } = window.MICROSCOPE; // by letter of the glossary

function make(tag, className, ...inside) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...inside);
  return element;
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const chance = (share) => (share < 0.0005 ? "less than 0.1%" : share > 0.9995 ? "more than 99.9%" : percent(share));
const short = (number) => String(Number(number.toPrecision(3)));

// A token as it can be read: line breaks and spaces get a sign.
const visible = (token) => token.replaceAll("\n", "↵").replaceAll(" ", "·");

// A link to the notebook that explains a part.
function notebook(name, words) {
  const link = make("a", "", words || `notebook ${name.replaceAll("_", " ")}`);
  link.href = `${window.MICROSCOPE.notebooks}/${name}.html`;
  return link;
}

function heading(text, ...words) {
  return [make("h2", "", text), make("p", "small pale", ...words)];
}

// Words in which backticks mark code.
const withCode = (words) => words.split("`").map((part, place) => (place % 2 ? make("code", "", part) : part));

// A bar of coloured parts; parts are [class, share, words] and their shares sum to 1.
function bar(parts) {
  const whole = make("span", "bar");
  for (const [kind, share, words] of parts) {
    const part = make("span", kind);
    part.style.width = `${100 * share}%`;
    part.title = words;
    whole.append(part);
  }
  return whole;
}

// A table of numbers from 0 up, the darker the larger.
function grid(rows, largest, rowNames, columnNames) {
  const table = make("table", "grid");
  if (columnNames) table.append(make("tr", "", make("th", ""), ...columnNames.map((name) => make("th", "", name))));
  rows.forEach((row, place) => {
    const line = make("tr", "");
    if (rowNames) line.append(make("th", "", rowNames[place]));
    for (const number of row) {
      const cell = make("td", "", number.toFixed(2));
      const strength = Math.round(70 * Math.min(Math.abs(number) / largest, 1));
      cell.style.background = `color-mix(in srgb, var(--tint) ${strength}%, transparent)`;
      line.append(cell);
    }
    table.append(line);
  });
  return make("div", "scroll", table);
}

const marks = {
  // The text as tokens that can be clicked.
  build(tokens, choose) {
    const spans = tokens.map((token, place) => {
      const span = make("span", "token", token === "<bos>" ? token : token.replaceAll("\n", "↵\n"));
      span.setAttribute("role", "option");
      span.id = `token${place}`;
      span.onclick = () => choose(place);
      return span;
    });
    document.getElementById("tokens").replaceChildren(...spans);
    return spans;
  },

  // Colours of what the query reads: the window in orange, what comes through entries as a green line below.
  byAttention(spans, t, found) {
    spans.forEach((span, place) => {
      const { direct, through, inWindow, pooled } = found[place];
      span.className = `token${place === t ? " chosen" : ""}${inWindow || pooled ? "" : " hidden"}`;
      span.style.setProperty("--direct", `${Math.round(100 * Math.sqrt(direct))}%`);
      const strength = Math.round(15 + 85 * Math.sqrt(Math.min(4 * through, 1)));
      span.style.setProperty("--through", pooled ? `${strength}%` : "0%");
      const ways = [];
      if (inWindow) ways.push(`${percent(direct)} directly`);
      if (pooled) ways.push(`${percent(through)} through entries`);
      const words = place > t ? "later than the query" : ways.join(", ") || "not read in this layer";
      span.title = `token ${place}: ${words}`;
    });
  },

  // Colours of what each token cost the model before it was read.
  byLoss(spans, t, loss) {
    spans.forEach((span, place) => {
      const nats = place ? loss[place - 1] : 0;
      span.className = `token${place === t ? " chosen" : ""}`;
      span.style.setProperty("--direct", "0%");
      span.style.setProperty("--through", "0%");
      span.style.setProperty("--loss", `${Math.round(100 * Math.min(nats / 8, 1))}%`);
      span.title = place ? `token ${place}: ${short(nats)} nats` : "token 0: nothing before it";
    });
  },
};
