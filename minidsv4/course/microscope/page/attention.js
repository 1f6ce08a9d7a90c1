// Panels on what a query reads: shares by head, strongest reads, compressed entries and their index scores.
"use strict";

const ATTENTION_NOTEBOOK = { WINDOW: "01_attention", CSA: "02_compression", HCA: "02_compression" };
const BAR = 30; // pixels of the largest index score

function sharesPanel({ layer, t, head, n_heads }, chooseHead) {
  const rows = ["mean", ...Array(n_heads).keys()].map((name) => {
    const { window, read, sink } = reading(layer, t, name);
    const direct = total(window);
    const through = total(read.map(({ weight }) => weight));
    const button = make("button", "small", name === "mean" ? "mean" : `head ${name}`);
    button.setAttribute("aria-pressed", String(String(name) === String(head)));
    button.onclick = () => chooseHead(String(name));
    const parts = [
      ["key", direct, `window ${percent(direct)}`],
      ["compressed", through, `entries ${percent(through)}`],
      ["sink", sink, `sink ${percent(sink)}`],
    ];
    const words = make("span", "small", parts.map(([, , text]) => text).join(", "));
    return make("div", "share", button, make("div", "", bar(parts), words));
  });
  return [
    ...heading("Where each head looks", `The weights of a query over the window (W = ${sizes.W} tokens), the `
      + `compressed entries and the sink sum to 1 in each of the H = ${sizes.H} heads. The sink is an entry of value `
      + "zero: a head that finds nothing gives it its attention. ", notebook("01_attention")),
    ...rows,
  ];
}

function readsPanel({ layer, t, head, tokens }) {
  const { window, read, sink } = reading(layer, t, head);
  const sources = window.map((weight, age) => ({
    kind: "key", weight, words: `token ${t - age} `, text: visible(tokens[t - age]),
  }));
  for (const { entry, weight } of read) {
    const pooled = pooledBy(layer, entry);
    const text = pooled.map(({ token }) => tokens[token]).join("");
    sources.push({ kind: "compressed", weight, words: `entry ${entry} `, text: visible(text) });
  }
  sources.push({ kind: "sink", weight: sink, words: "sink", text: "" });
  sources.sort((a, b) => b.weight - a.weight);
  const largest = Math.max(sources[0].weight, 1e-9);
  const rows = sources.slice(0, 8).map(({ kind, weight, words, text }) => make("div", "read",
    bar([[kind, weight / largest, percent(weight)]]),
    make("span", "", `${percent(weight)} ${words}`), make("code", "", text)));
  const who = head === "mean" ? "the mean over heads" : `head ${head}`;
  const words = `The eight largest weights of ${who}; ↵ is a line break, · a space.`;
  return [...heading("Strongest reads", words), ...rows];
}

function entriesPanel(view, chooseEntry) {
  const { layer, t, entry } = view;
  if (layer.kind === "WINDOW") {
    return heading("Compressed entries", `A window layer has none: it reads the last W = ${sizes.W} tokens and the `
      + "sink. Choose another layer. ", notebook("04_who_sees_what"));
  }
  const { read } = reading(layer, t, view.head);
  const n_finished = finished(layer, t);
  const n_entries = layer.pooled.shape[0];
  const scores = layer.scores ? layer.scores.row(t).slice(0, n_finished) : [];
  const largest = Math.max(...scores.map(Math.abs), 1e-9);
  const height = (score) => Math.round(BAR * Math.abs(score) / largest);
  const cells = Array.from({ length: n_entries }, (_, place) => {
    const found = read.find((one) => one.entry === place);
    const facts = { place, found, isFinished: place < n_finished, score: scores[place], height };
    return entryCell(facts, entry, chooseEntry);
  });
  const row = make("div", "cells", ...cells);
  row.style.setProperty("--up", `${height(Math.max(0, ...scores))}px`); // room above the line of score 0
  row.style.setProperty("--down", `${height(Math.min(0, ...scores))}px`); // and below it
  return [
    ...heading("Compressed entries", ...wordsOnEntries(layer, n_finished, read.length)),
    row,
    ...(entry < n_entries ? entryWords(view, read) : []),
  ];
}

function wordsOnEntries(layer, n_finished, n_read) {
  const ratio = ratioOf(layer);
  if (layer.kind === "HCA") {
    return [`HCA, Heavily Compressed Attention: M' = ${ratio} tokens become one entry, and a query reads all that are `
      + `finished, here ${n_finished}. `, notebook("02_compression")];
  }
  return [`CSA, Compressed Sparse Attention: an entry pools ${2 * ratio} tokens, the M = ${ratio} that close it and `
    + `the ${ratio} before. The indexer scores all ${n_finished} finished entries (height of the bar; the line is a `
    + `score of 0, and a negative one hangs below it) and picks at most P = ${sizes.P} (green), here ${n_read}. `,
  notebook("03_indexer")];
}

function entryCell({ place, found, isFinished, score, height }, chosen, choose) {
  const cell = make("button", `cell${found ? " picked" : ""}${isFinished ? "" : " open"}`);
  if (score !== undefined) {
    const bar = make("span", score < 0 ? "score negative" : "score");
    bar.style.height = `${height(score)}px`;
    cell.append(make("span", "scores", bar));
  }
  cell.append(make("span", "number", String(place)));
  if (found) cell.append(make("span", "weight", percent(found.weight)));
  const scored = score === undefined ? "" : `, index score ${short(score)}`;
  cell.title = `entry ${place}${isFinished ? "" : ", not finished"}${scored}`;
  cell.disabled = !isFinished;
  cell.setAttribute("aria-pressed", String(place === chosen));
  cell.onclick = () => choose(place);
  return cell;
}

function entryWords({ layer, t, entry, tokens }, read) {
  if (entry >= finished(layer, t)) return [make("p", "small", `Entry ${entry} is not finished yet at this query.`)];
  const found = read.find((one) => one.entry === entry);
  const score = layer.scores ? ` Its index score is ${short(layer.scores.at(t, entry))}.` : "";
  const weight = found ? ` Its weight is ${percent(found.weight)}.` : " It is not picked, so it has no weight.";
  const parts = pooledBy(layer, entry).map(({ token, share }) => {
    const words = [make("code", "", visible(tokens[token])), make("span", "small", percent(share))];
    const part = make("span", "pooled", ...words);
    part.style.setProperty("--through", `${Math.round(100 * Math.sqrt(share))}%`);
    return part;
  });
  return [
    make("p", "", `Entry ${entry} pools these tokens, the mean over its channels.${score}${weight}`),
    make("div", "row", ...parts),
  ];
}
