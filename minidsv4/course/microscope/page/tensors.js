// The numbers of a text: unpacked tensors, and what one query reads in one layer and head.
"use strict";

// A tensor in fixed point. `row(i, j, ...)` are its numbers behind the leading indices, `at` is a single one.
function unpack({ shape, low, step, bits, data }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const whole = bits === 8 ? bytes : new Uint16Array(bytes.buffer);
  const numbers = Float64Array.from(whole, (q) => low + step * q);
  const row = (...places) => {
    let size = numbers.length;
    let start = 0;
    places.forEach((place, axis) => {
      size = shape[axis] ? size / shape[axis] : 0;
      start += place * size;
    });
    return [...numbers.subarray(start, start + size)];
  };
  return { shape, row, at: (...places) => row(...places)[0] };
}

// Every packed tensor within a text's data, unpacked in its place.
function unpackAll(data) {
  if (Array.isArray(data)) return data.map(unpackAll);
  if (data === null || typeof data !== "object") return data;
  if (data.bits) return unpack(data);
  return Object.fromEntries(Object.entries(data).map(([name, part]) => [name, unpackAll(part)]));
}

const NO_PICK = 255;

// What the query at token t reads in a layer; head is a number, or "mean" for the mean over heads.
function reading(layer, t, head) {
  const n_heads = layer.sink.shape[1];
  const heads = head === "mean" ? [...Array(n_heads).keys()] : [Number(head)];
  const mean = (rows) => rows[0].map((_, place) => rows.reduce((sum, row) => sum + row[place], 0) / rows.length);
  const entryWeights = mean(heads.map((h) => layer.entries.row(t, h)));
  const read = layer.read.row(t)
    .map((entry, place) => ({ entry, weight: entryWeights[place] }))
    .filter(({ entry }) => entry !== NO_PICK);
  return {
    window: mean(heads.map((h) => layer.window.row(t, h))).slice(0, t + 1),
    read,
    sink: mean(heads.map((h) => [layer.sink.at(t, h)]))[0],
  };
}

const total = (numbers) => numbers.reduce((sum, number) => sum + number, 0);

// Tokens per entry: an entry of CSA pools two windows of M tokens, one of HCA pools one.
const ratioOf = (layer) => (layer.kind === "CSA" ? layer.pooled.shape[1] / 2 : layer.pooled.shape[1]);

// The tokens that an entry pools, with what part of it comes from each.
function pooledBy(layer, entry) {
  const ratio = ratioOf(layer);
  const first = layer.kind === "CSA" ? ratio * (entry - 1) : ratio * entry;
  return layer.pooled.row(entry)
    .map((share, slot) => ({ token: first + slot, share }))
    .filter(({ token }) => token >= 0);
}

// How many entries are finished when the query at token t looks.
const finished = (layer, t) => Math.min(Math.floor((t + 1) / ratioOf(layer)), layer.pooled.shape[0]);

// What reaches the query from each token: `direct` by the window, `through` by entries that pool it.
function reach(layer, t, head, n_tokens) {
  const { window, read } = reading(layer, t, head);
  const found = Array.from({ length: n_tokens }, () => ({ direct: 0, through: 0, inWindow: false, pooled: false }));
  window.forEach((weight, age) => {
    found[t - age].direct = weight;
    found[t - age].inWindow = true;
  });
  for (const { entry, weight } of read) {
    for (const { token, share } of pooledBy(layer, entry)) {
      found[token].through += weight * share;
      found[token].pooled = true;
    }
  }
  return found;
}
