// Drawing of values: numbers as tables with a tint by size, lists by item, names explained by the glossary.
"use strict";

const drawing = (() => {
  const { axes } = window.STEPPER;
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const written = (number) => (typeof number === "string" ? number.replace("inf", "∞") : String(number));

  // The axes that a name ends with, such as ["T", "D"] of x_TD.
  function lettersOf(name, rank) {
    const ending = /_([A-Z]+)$/.exec(name);
    return ending && ending[1].length === rank && [...ending[1]].every((letter) => axes[letter]) ? [...ending[1]] : [];
  }

  // Blue below zero, red above it: the stronger, the larger.
  function tint(number, largest) {
    if (typeof number !== "number" || !largest) return "transparent";
    const strength = Math.round(45 * Math.min(Math.abs(number) / largest, 1));
    return `color-mix(in srgb, ${number < 0 ? "#3b78c4" : "#c4473b"} ${strength}%, transparent)`;
  }

  function tableOf(numbers, n_columns, letters) {
    const areCounts = numbers.every(Number.isInteger);
    const largest = areCounts ? 0 : Math.max(...numbers.filter(Number.isFinite).map(Math.abs));
    const table = make("table");
    const [down, across] = letters;
    if (across) {
      const head = table.insertRow();
      head.append(make("th", "", down ? `${down} \\ ${across}` : across));
      for (let column = 0; column < n_columns; column += 1) head.append(make("th", "", String(column)));
    }
    for (let start = 0; start < numbers.length; start += n_columns) {
      const row = table.insertRow();
      if (across) row.append(make("th", "", down ? String(start / n_columns) : ""));
      for (const number of numbers.slice(start, start + n_columns)) {
        const cell = make("td", "", written(number));
        cell.style.background = tint(number, largest);
        row.append(cell);
      }
    }
    const frame = make("div", "scroll");
    frame.append(table);
    return frame;
  }

  // An array of any rank: tables of its last two axes, one below the other, the last one first.
  function arrayOf(row, letters) {
    const shape = row.shape;
    const n_columns = shape[shape.length - 1];
    const size = n_columns * (shape.length > 1 ? shape[shape.length - 2] : 1);
    const whole = make("div");
    if (!row.numbers.length) return make("p", "block", "empty");
    const n_blocks = row.numbers.length / size;
    for (let block = n_blocks - 1; block >= 0; block -= 1) {
      if (n_blocks > 1) whole.append(make("p", "block", `${letters[0] || "first axis"} = ${placeOf(block, shape)}`));
      whole.append(tableOf(row.numbers.slice(block * size, (block + 1) * size), n_columns, letters.slice(-2)));
    }
    return whole;
  }

  // The indices of a block along all axes but the last two.
  function placeOf(block, shape) {
    const places = [];
    for (let axis = shape.length - 3; axis >= 0; axis -= 1) {
      places.unshift(block % shape[axis]);
      block = Math.floor(block / shape[axis]);
    }
    return places.join(", ");
  }

  function sizeOf(row) {
    if (row.shape) return row.shape.join(" × ");
    if (row.items) return `${row.items.length} item${row.items.length === 1 ? "" : "s"}`;
    if (row.tensors) return `${Object.keys(row.tensors).length} tensors`;
    return row.text !== undefined ? row.text : written(row.number);
  }

  function contents(row, letters) {
    if (row.numbers) return arrayOf(row, letters);
    if (row.items) return itemsOf(row);
    if (row.tensors) {
      const words = Object.entries(row.tensors).map(([name, shape]) => `${name} (${shape.join(" × ")})`);
      return make("p", "block", words.join(", "));
    }
    return null;
  }

  function itemsOf(row) {
    const plain = row.items.every((item) => walk.values[item].number !== undefined);
    const numbers = row.items.map((item) => walk.values[item].number);
    if (plain && numbers.length) return tableOf(numbers, numbers.length, []);
    const whole = make("div", "item");
    for (let place = row.items.length - 1; place >= 0; place -= 1) {
      whole.append(entry(`[${place}]`, row.items[place], false, place >= row.items.length - 1));
    }
    return whole;
  }

  // One variable: its name, its size, its axes in words and its numbers.
  function entry(name, number, isNew, isOpen) {
    const row = walk.values[number];
    const letters = row.shape ? lettersOf(name, row.shape.length) : [];
    const inside = contents(row, letters);
    const whole = make(inside ? "details" : "div", `value${isNew ? " new" : ""}`);
    const head = inside ? make("summary") : whole;
    head.append(make("code", "name", name), make("span", "", inside ? ` ${sizeOf(row)}` : ` = ${sizeOf(row)}`));
    if (!inside) return whole;
    whole.open = isOpen && !row.tensors;
    whole.append(head);
    if (letters.length) {
      const words = [...new Set(letters)].map((letter) => `${letter} ${axes[letter]}`);
      whole.append(make("p", "block", words.join("; ")));
    }
    whole.append(inside);
    return whole;
  }

  return { make, entry, sizeOf };
})();
