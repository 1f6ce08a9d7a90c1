// Panels on what is done with what was read: experts, streams, the next token, and the cache.
"use strict";

function expertsPanel({ layer, t }) {
  const chosen = layer.experts.row(t);
  const weights = layer.expertWeights.row(t);
  const scores = layer.expertScores.row(t);
  const largest = Math.max(...scores);
  const columns = scores.map((score, place) => {
    const slot = chosen.indexOf(place);
    const column = make("span", slot < 0 ? "expert" : "expert picked");
    const height = make("span", "score");
    height.style.height = `${2 + 46 * score / largest}px`;
    column.append(height, make("span", "number", String(place)));
    column.title = `expert ${place}: score ${short(score)}${slot < 0 ? "" : `, weight ${short(weights[slot])}`}`;
    return column;
  });
  const how = layer.hashed
    ? `Here a frozen table of token ids chooses A = ${sizes.A} experts (hash routing); weights follow the scores.`
    : `The router scores E = ${sizes.E} experts; a bias that balances their load is added before it chooses the best `
      + `A = ${sizes.A}.`;
  const words = chosen.map((place, slot) => `expert ${place} with weight ${short(weights[slot])}`).join(" and ");
  return [
    ...heading("Experts", `${how} Every token visits the shared expert as well. `, notebook("07_experts")),
    make("div", "columns", ...columns),
    make("p", "", `Chosen: ${words}. The weights sum to ${sizes.scale}, the model's route scale.`),
  ];
}

function streamsPanel({ layer, t }) {
  const names = [...Array(sizes.N).keys()].map(String);
  const sites = [["attentionMix", "before attention"], ["expertsMix", "before the experts"]].map(([site, words]) => {
    const { pre, post, carry } = layer[site];
    const mix = names.map((_, old) => carry.row(t, old));
    return make("div", "site",
      make("h3", "", `Site ${words}`),
      make("p", "small", "Mix, from old stream i (row) to new stream j (column): the transpose of the report's B. "
        + "Rows and columns sum to about 1."),
      grid(mix, 1, names, names),
      make("p", "small", "Read weights: how much of each stream the part reads (the report's A)."),
      grid([pre.row(t)], 2),
      make("p", "small", "Write weights: how much of the result each stream gets (the report's C)."),
      grid([post.row(t)], 2));
  });
  const norms = layer.norms.row(t);
  const bars = norms.map((norm, place) => {
    const line = bar([["query", norm / Math.max(...norms), short(norm)]]);
    return make("div", "read", line, make("span", "", `stream ${place}: ${short(norm)}`));
  });
  return [
    ...heading("Residual streams", `N = ${sizes.N} streams run through the model in place of one. Each part reads a `
      + "weighted sum of them, and its result is written back while they are mixed. ", notebook("06_streams")),
    make("div", "sites", ...sites, make("div", "site", make("h3", "", "After the layer"),
      make("p", "small", "Root mean square of each stream at this token."), ...bars)),
  ];
}

function nextPanel({ text, t, tokens }) {
  const chances = text.chance.row(t);
  const rows = text.best[t].map((token, place) => make("div", "read",
    bar([["query", chances[place], percent(chances[place])]]), make("span", "", percent(chances[place])),
    make("code", token === tokens[t + 1] ? "right" : "", visible(token))));
  const end = t + 1 < tokens.length
    ? ["What follows is ", make("code", "", visible(tokens[t + 1])),
      `, which cost ${short(text.loss.at(t))} nats: it had a probability of ${chance(Math.exp(-text.loss.at(t)))}.`]
    : ["The text ends here."];
  return [
    ...heading("Next token", "After the last layer: the five likeliest next tokens. ", notebook("10_training")),
    ...rows, make("p", "", ...end),
  ];
}

const KINDS = [["window", "key"], ["CSA entries", "compressed"], ["HCA entries", "compressed weak"],
  ["indexer keys", "query"], ["tail state", "masked"]];

function cachePanel({ t }) {
  const { cache, others, longest } = window.MICROSCOPE;
  const sums = cache.window.map((_, place) => total(KINDS.map(([kind]) => cache[kind][place])));
  const now = KINDS.map(([kind, colour]) => make("tr", "", make("th", "", make("span", `chip ${colour}`), kind),
    make("td", "", cache[kind][t].toLocaleString("en"))));
  const together = make("strong", "", sums[t].toLocaleString("en"));
  now.push(make("tr", "", make("th", "", "together"), make("td", "", together)));
  for (const [name, bytes] of Object.entries(others)) {
    const there = make("td", "", (bytes * (t + 1)).toLocaleString("en"));
    now.push(make("tr", "pale", make("th", "", `for comparison: ${name}`), there));
  }
  return [
    ...heading("Cache", `What the model must remember after these ${t + 1} tokens: bytes of 32-bit numbers, all L = `
      + `${sizes.L} layers together. The window stops growing at W = ${sizes.W} tokens; there is one entry more every `
      + `${sizes.CSA} (CSA) or ${sizes.HCA} tokens (HCA); the tail state is what an unfinished entry needs. `,
    notebook("05_cache")),
    make("div", "sites",
      cachePicture(cache, others, sums, longest, t), make("div", "scroll", make("table", "bytes", ...now))),
  ];
}

// Kinds of bytes stacked over the tokens, the other attentions as lines, the present token as an upright line.
function cachePicture(cache, others, sums, longest, t) {
  const [width, height] = [520, 210];
  const top = 1.5 * sums[longest - 1];
  const x = (place) => 44 + (width - 54) * place / (longest - 1);
  const y = (bytes) => height - 24 - (height - 34) * Math.min(bytes / top, 1);
  const places = [...Array(longest).keys()];
  let below = places.map(() => 0);
  const layers = KINDS.map(([kind, colour]) => {
    const above = below.map((bytes, place) => bytes + cache[kind][place]);
    const points = [...places.map((place) => [x(place), y(above[place])]),
      ...places.toReversed().map((place) => [x(place), y(below[place])])];
    below = above;
    const corners = points.map(([right, down]) => `${right.toFixed(1)},${down.toFixed(1)}`).join(" ");
    return `<polygon class="${colour}" points="${corners}"/>`;
  });
  const lines = Object.entries(others).map(([name, bytes]) => {
    const end = Math.min(longest - 1, top / bytes - 1);
    return `<line class="other" x1="${x(0)}" y1="${y(bytes)}" x2="${x(end)}" y2="${y(bytes * (end + 1))}"/>`
      + `<text x="${x(end) - 4}" y="${y(bytes * (end + 1)) + 12}" text-anchor="end">${name}</text>`;
  });
  const picture = make("div", "picture");
  picture.innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Bytes of the cache by kind">`
    + `${layers.join("")}${lines.join("")}`
    + `<line class="now" x1="${x(t)}" x2="${x(t)}" y1="10" y2="${height - 24}"/>`
    + `<text x="${x(0)}" y="${height - 8}">1 token</text>`
    + `<text x="${x(longest - 1)}" y="${height - 8}" text-anchor="end">${longest} tokens</text>`
    + `<text x="2" y="${y(sums[longest - 1]) + 4}">${Math.round(sums[longest - 1] / 1000)} kB</text></svg>`;
  return picture;
}
