// The page: which text, token, layer, head and entry are looked at, and how the reader changes that.
"use strict";

(() => {
  const { texts, kinds, axes, precision } = window.MICROSCOPE;
  const $ = (id) => document.getElementById(id);
  const n_heads = sizes.H;
  const state = { text: texts[0].name, token: null, layer: 1, head: "mean", colour: "attention", entry: null };
  const loaded = {}; // unpacked data by the text's name
  let spans = [];

  // A text's data come as a script when it is first asked for.
  function load(name) {
    if (loaded[name]) return Promise.resolve();
    return new Promise((done, failed) => {
      const element = document.createElement("script");
      element.src = `texts/${name}.js`;
      element.onload = () => {
        const { tokens, best, ...data } = window[`TEXT_${name}`];
        loaded[name] = { tokens, best, ...unpackAll(data) };
        delete window[`TEXT_${name}`];
        done();
      };
      element.onerror = () => failed(new Error(`texts/${name}.js cannot be read`));
      document.body.append(element);
    });
  }

  function strongestEntry(layer, t) {
    const { read } = reading(layer, t, state.head);
    return read.reduce((best, one) => (one.weight > best.weight ? one : best), { entry: 0, weight: -1 }).entry;
  }

  // Redraw, and give the keyboard back the button that it was on.
  function draw() {
    const card = document.activeElement && document.activeElement.closest("section[id]");
    const place = card ? [...card.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    redraw();
    if (place >= 0) card.querySelectorAll("button")[place].focus({ preventScroll: true });
  }

  function redraw() {
    const text = loaded[state.text];
    const layer = text.layers[state.layer];
    const t = state.token;
    const entry = state.entry === null && layer.kind !== "WINDOW" ? strongestEntry(layer, t) : state.entry;
    const view = { text, tokens: text.tokens, layer, t, head: state.head, entry, n_heads };
    drawText(view);
    $("shares").replaceChildren(...sharesPanel(view, (head) => change({ head })));
    $("reads").replaceChildren(...readsPanel(view));
    $("entries").replaceChildren(...entriesPanel(view, (chosen) => change({ entry: chosen }, "entries")));
    $("experts").replaceChildren(...expertsPanel(view));
    $("streams").replaceChildren(...streamsPanel(view));
    $("next").replaceChildren(...nextPanel(view));
    $("cache").replaceChildren(...cachePanel(view));
    $("text").value = state.text;
    $("head").value = state.head;
    $("colour").value = state.colour;
    for (const button of $("layers").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.layer) === state.layer));
    }
    const address = `#text=${state.text}&token=${t}&layer=${state.layer}&head=${state.head}`;
    history.replaceState(null, "", address);
  }

  function drawText(view) {
    const { text, tokens, layer, t } = view;
    if (state.colour === "loss") marks.byLoss(spans, t, text.loss.row());
    else marks.byAttention(spans, t, reach(layer, t, state.head, tokens.length));
    $("tokens").setAttribute("aria-activedescendant", spans[t].id);
    spans.forEach((span, place) => span.setAttribute("aria-selected", String(place === t)));
    $("summary").replaceChildren(...(state.colour === "loss" ? lossWords(text, t) : readingWords(view)));
  }

  function lossWords(text, t) {
    const mean = total(text.loss.row()) / text.loss.row().length;
    const own = t ? `${short(text.loss.at(t - 1))} nats` : "nothing, as it is given";
    return [`The redder a token, the less the model expected it (red at 8 nats). Token ${t} cost ${own}; the mean of `
      + `this text is ${short(mean)} nats a token.`];
  }

  function readingWords({ layer, t, head, tokens }) {
    const { window: direct, read, sink } = reading(layer, t, head);
    const who = head === "mean" ? "the mean over the heads" : `head ${head}`;
    const through = total(read.map(({ weight }) => weight));
    return [`Query: token ${t} `, make("code", "", visible(tokens[t])), `. In layer ${state.layer} ${who} gives `
      + `${percent(total(direct))} to single tokens, ${percent(through)} to entries, ${percent(sink)} to the sink.`];
  }

  function change(changes, keepEntry) {
    const before = state.text;
    if (!keepEntry) state.entry = null;
    Object.assign(state, changes);
    if (state.text !== before) state.token = null;
    return load(state.text).then(() => {
      const { tokens } = loaded[state.text];
      if (state.text !== before || !spans.length) {
        spans = marks.build(tokens, (token) => change({ token }));
        $("look").replaceChildren("Look for: ", ...withCode(texts.find(({ name }) => name === state.text).look));
      }
      const token = state.token === null ? firstLook(tokens) : Number(state.token) || 0;
      state.token = Math.min(Math.max(token, 0), tokens.length - 1);
      draw();
    }).catch((error) => { $("summary").textContent = error.message; throw error; });
  }

  // The token that is chosen when a text is opened: nine tenths through it.
  const firstLook = (tokens) => Math.floor(0.9 * tokens.length);

  function moved(list, now, by) {
    const place = list.findIndex((one) => String(one) === String(now)) + by;
    return list[Math.min(Math.max(place, 0), list.length - 1)];
  }

  const heads = ["mean", ...Array(n_heads).keys()].map(String);
  const names = texts.map(({ name }) => name);
  const layerPlaces = kinds.map((_, place) => place);
  const keys = {
    ArrowLeft: () => ({ token: state.token - 1 }),
    ArrowRight: () => ({ token: state.token + 1 }),
    ArrowUp: () => ({ layer: moved(layerPlaces, state.layer, -1) }),
    ArrowDown: () => ({ layer: moved(layerPlaces, state.layer, 1) }),
    "[": () => ({ head: moved(heads, state.head, -1) }),
    "]": () => ({ head: moved(heads, state.head, 1) }),
    ",": () => ({ text: moved(names, state.text, -1) }),
    ".": () => ({ text: moved(names, state.text, 1) }),
    l: () => ({ colour: state.colour === "loss" ? "attention" : "loss" }),
  };

  function pressed(event) {
    const taken = event.ctrlKey || event.altKey || event.metaKey || /INPUT|SELECT/.test(event.target.tagName);
    if (taken || !keys[event.key] || !loaded[state.text]) return;
    event.preventDefault();
    change(keys[event.key]());
  }

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const known = names.includes(given.get("text")) ? given.get("text") : state.text;
    const layer = layerPlaces.includes(Number(given.get("layer") ?? 1)) ? Number(given.get("layer") ?? 1) : 1;
    const head = heads.includes(given.get("head")) ? given.get("head") : "mean";
    change({ text: known, layer, head }).then(() => {
      if (given.has("token")) change({ token: Number(given.get("token")) || 0 });
    });
  }

  function buildControls() {
    for (const { name, title } of texts) $("text").append(new Option(title, name));
    for (const head of heads) $("head").append(new Option(head === "mean" ? "mean of all" : head, head));
    kinds.forEach((kind, layer) => {
      const button = make("button", "", `${layer} ${kind === "WINDOW" ? "window" : kind}`);
      button.dataset.layer = layer;
      button.onclick = () => change({ layer });
      $("layers").append(button);
    });
    $("layers").prepend(make("span", "", "Layer"));
    for (const name of ["text", "head", "colour"]) $(name).onchange = () => change({ [name]: $(name).value });
    const letters = Object.entries(axes).map(([letter, meaning]) => `${letter} ${meaning}`).join("; ");
    $("about").append(make("p", "", precision), make("p", "", `Letters of the course: ${letters}.`),
      make("p", "", notebook("glossary", "All letters and abbreviations")));
  }

  buildControls();
  addEventListener("keydown", pressed);
  addEventListener("hashchange", readAddress);
  readAddress();
})();
