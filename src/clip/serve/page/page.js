"use strict";
// Search by texts, images and rows of an index. File names and columns come from strangers: they are only ever set as text.

const GROUPS = 20; // of duplicates that are shown at a time
const POLL_MS = 1000;
const LIKENESS = { bytes: "the same file", pixels: "the same pixels", edited: "edited", similar: "alike" };
const $ = (id) => document.getElementById(id);
const state = { indexes: [], terms: [], chosen: null, asked: 0, key: sessionStorage.getItem("clip-key") || "" };

async function call(path, body) {
  const headers = state.key ? { authorization: `Bearer ${state.key}` } : {};
  if (body) headers["content-type"] = "application/json";
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (answer.status === 401) {
    const key = prompt("This server asks for a key:");
    if (key) {
      state.key = key;
      sessionStorage.setItem("clip-key", key);
      return call(path, body);
    }
  }
  if (!answer.ok) {
    let message = `the server answered ${answer.status}`;
    try { message = (await answer.json()).error.message; } catch { /* no JSON: a proxy's page */ }
    throw Object.assign(new Error(message), { status: answer.status });
  }
  return answer;
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

const number = (value) => value.toLocaleString("en");
const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
const currentIndex = () => state.indexes[Number($("index").value) || 0];
const tileOf = (index, row) => `v1/indexes/${encodeURIComponent(index.name)}/rows/${row}/tile`;

function showTile(image, index, row, failed) {
  image.onerror = failed;
  if (!state.key) {
    image.loading = "lazy";
    image.src = tileOf(index, row);
    return;
  }
  call(tileOf(index, row)).then((answer) => answer.blob()).then((blob) => {
    image.onload = () => URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(blob);
  }).catch(failed);
}

function showTerms() {
  $("terms").replaceChildren(...state.terms.map((term) => {
    const shown = element("span", "term");
    const image = element("img");
    image.alt = "";
    if (term.uri) image.src = term.uri; else showTile(image, term.index, term.row, () => image.remove());
    const remove = element("button", "", "✕");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${term.name}`);
    remove.onclick = () => {
      state.terms = state.terms.filter((other) => other !== term);
      showTerms();
      search();
    };
    shown.append(image, element("span", "", term.name), remove);
    return shown;
  }));
  const last = state.terms.at(-1);
  if (last) choose(last);
  if (!last && !state.chosen) $("classifying").hidden = true;
}

function choose(term) {
  state.chosen = term;
  $("classifying").hidden = false;
  $("labels").placeholder = `Labels for ${term.name}: cat, dog, house`;
  $("bars").replaceChildren();
}

function addTerm(term) {
  state.terms = [term]; // more like this one, not like all that were clicked
  showTerms();
  search();
}

function addFile(file) {
  if (!file) return;
  const reader = new FileReader();
  reader.onerror = () => say(`${file.name} cannot be read`, true);
  reader.onload = () => addTerm({ uri: reader.result.replace(/^data:[^,]*?(;base64)?,/, "data:image/unknown;base64,"), name: file.name || "pasted image" });
  reader.readAsDataURL(file);
}

async function search() {
  const index = currentIndex();
  showGroups(false);
  const text = $("text").value.trim();
  const own = ++state.asked;
  if (!index) return;
  if (!text && !state.terms.length) {
    $("hits").replaceChildren();
    say("Type what the images show, or drop, paste or choose an image.");
    return;
  }
  const body = { index: index.name, k: Number($("k").value) };
  if (text) body.text = text;
  const images = state.terms.filter((term) => term.uri).map((term) => term.uri);
  const rows = state.terms.filter((term) => !term.uri).map((term) => term.row);
  if (images.length) body.image = images;
  if (rows.length) body.like = rows;
  const negative = $("negative").value.split(",").map((word) => word.trim()).filter(Boolean);
  if (negative.length) body.negative = negative;
  if ($("where").value.trim()) body.where = $("where").value.trim();
  say("Searching…");
  try {
    const began = performance.now();
    const found = await (await call("v1/search", body)).json();
    if (own !== state.asked) return; // a later search was begun
    $("hits").replaceChildren(...found.hits.map((hit) => showHit(index, hit)));
    const took = Math.round(performance.now() - began);
    say(found.hits.length ? `${number(found.hits.length)} of ${number(found.rows)} images, ${took} ms` : "No image is like that. Try other words, or less in Where.");
  } catch (error) {
    if (own !== state.asked) return;
    $("hits").replaceChildren();
    say(error.message, true);
  }
}

function makeTile(term, label, text) {
  const tile = element("button", "tile");
  tile.type = "button";
  tile.title = `More like ${term.name}`;
  tile.setAttribute("aria-label", label);
  tile.onclick = () => { $("text").value = ""; addTerm(term); scrollTo({ top: 0 }); };
  if (text !== undefined) {
    tile.classList.add("none");
    tile.textContent = text;
    return tile;
  }
  const image = element("img");
  image.alt = "";
  showTile(image, term.index, term.row, () => {
    tile.classList.add("none");
    tile.replaceChildren("The image cannot be read any more.");
  });
  tile.append(image);
  return tile;
}

function showHit(index, hit) {
  const card = element("li");
  const term = { index, row: hit.row, name: hit.id };
  const text = index.kind === "texts" ? hit.columns.text ?? hit.id : undefined;
  const tile = makeTile(term, `More like ${hit.id}, score ${hit.score.toFixed(3)}`, text);
  const caption = element("div", "caption");
  caption.append(element("span", "score", hit.score.toFixed(3)), element("span", "name", hit.id));
  const { width, height, format, warning, ...rest } = hit.columns;
  delete rest.size_bytes;
  const facts = [width && height ? `${width} × ${height}` : "", ...Object.values(rest).filter((value) => value !== null && value !== "")];
  const line = element("div", "facts", facts.filter(Boolean).join(" · "));
  line.title = Object.entries(hit.columns).filter(([, value]) => value !== null).map(([name, value]) => `${name}: ${value}`).join("\n");
  caption.append(line);
  card.append(tile, caption);
  if (index.kind !== "texts") {
    const label = element("button", "label-it", "Label");
    label.type = "button";
    label.setAttribute("aria-label", `Label ${hit.id}`);
    label.onclick = () => { choose(term); $("labels").focus(); };
    card.append(label);
  }
  return card;
}

function showGroups(shown) {
  $("grouping").hidden = !shown;
  $("hits").hidden = shown;
  $("duplicates").hidden = shown || currentIndex()?.kind === "texts";
}

async function findDuplicates(start = 0) {
  const index = currentIndex();
  const own = ++state.asked;
  showGroups(true);
  $("more-groups").hidden = true;
  if (!start) $("groups").replaceChildren();
  const path = `v1/indexes/${encodeURIComponent(index.name)}/duplicates?level=${$("level").value}&start=${start}&count=${GROUPS}`;
  try {
    for (;;) {
      const found = await call(path).then((answer) => answer.json(), (error) => {
        if (error.status === 429) return {}; // another level is being searched
        throw error;
      });
      if (own !== state.asked) return; // a search, or another level
      if (found.state === "done") {
        const { group_count: groups, duplicates, unreadable } = found.report;
        $("groups").append(...found.data.map((group) => showGroup(index, group)));
        $("more-groups").hidden = start + found.data.length >= groups;
        const lost = unreadable ? ` ${count(unreadable, "image")} cannot be read any more.` : "";
        say((groups ? `${count(duplicates, "duplicate")} in ${count(groups, "group")}. Nothing is deleted.` : "No image is there twice.") + lost);
        return;
      }
      say(found.total ? `Looking for duplicates: ${number(found.done)} of ${number(found.total)} ${found.what}…` : "Looking for duplicates…");
      await new Promise((go) => setTimeout(go, POLL_MS));
      if (own !== state.asked) return;
    }
  } catch (error) {
    if (own === state.asked) say(error.message, true);
  }
}

function showGroup(index, group) {
  const item = element("li");
  item.append(element("strong", "", `${number(group.images.length)} images`));
  const list = element("ul");
  list.append(...group.images.map((image) => {
    const card = element("li", image.keep ? "keep" : "");
    const sure = image.like === "bytes" || image.like === "pixels";
    const what = image.keep ? "to keep" : LIKENESS[image.like] + (sure ? "" : `, cosine ${image.cosine.toFixed(3)}`);
    const caption = element("div", "caption");
    caption.append(element("span", "name", image.id), element("div", "facts", what));
    caption.append(element("div", "facts", `${image.width} × ${image.height} · ${number(Math.ceil(image.size_bytes / 1000))} kB`));
    card.append(makeTile({ index, row: image.row, name: image.id }, `More like ${image.id}, ${what}`), caption);
    return card;
  }));
  item.append(list);
  return item;
}

async function classify(event) {
  event.preventDefault();
  const labels = $("labels").value.split(",").map((label) => label.trim()).filter(Boolean);
  const term = state.chosen;
  if (!term) return;
  const body = term.uri ? { image: term.uri, model: currentIndex()?.model } : { like: [term.row], index: term.index.name };
  try {
    const { results } = await (await call("v1/classify", { ...body, labels })).json();
    $("bars").replaceChildren(...results[0].slice(0, 20).map(({ label, probability }) => {
      const row = element("li");
      const bar = element("progress");
      bar.value = probability;
      bar.setAttribute("aria-label", label);
      const name = element("span", "what", label);
      name.title = label;
      row.append(name, bar, element("span", "value", `${(100 * probability).toFixed(1)} %`));
      return row;
    }));
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

function showIndex() {
  const index = currentIndex();
  if (!index) return;
  const kinds = index.kind === "texts" ? "texts" : "images";
  showGroups(false);
  $("about").textContent = `${number(index.rows)} ${kinds} in ${index.name}, ${index.model}` + (index.untrained ? " with random weights: scores mean nothing" : "");
  $("columns").textContent = index.columns.length ? `Where is a condition in SQL on: ${index.columns.join(", ")}` : "";
}

async function begin() {
  say("Loading…");
  try {
    const { data, models } = await (await call("v1/indexes")).json();
    state.indexes = data;
    if (!data.length) {
      showGroups(false);
  $("about").textContent = `Models: ${models.join(", ")}`;
      say("This server has no images to search in. Start it with: clip serve --index OUT");
      for (const field of $("query").elements) field.disabled = true;
      return;
    }
    $("index").replaceChildren(...data.map((index, place) => new Option(`${index.name} (${number(index.rows)})`, place)));
    $("index-field").hidden = data.length < 2;
    showIndex();
    say("Type what the images show, or drop, paste or choose an image.");
    const given = new URLSearchParams(location.hash.slice(1)).get("q");
    if (given) { $("text").value = given; search(); }
  } catch (error) {
    say(`${error.message}. Trying again…`, true);
    setTimeout(begin, 2000);
  }
}

$("query").onsubmit = (event) => {
  event.preventDefault();
  history.replaceState(null, "", $("text").value ? `#q=${encodeURIComponent($("text").value)}` : location.pathname);
  search();
};
$("labels-form").onsubmit = classify;
$("duplicates").onclick = () => findDuplicates();
$("level").onchange = () => findDuplicates();
$("more-groups").onclick = () => findDuplicates($("groups").children.length);
$("back").onclick = search;
$("file").onchange = (event) => { addFile(event.target.files[0]); event.target.value = ""; };
$("index").onchange = () => { state.terms = []; state.chosen = null; showTerms(); showIndex(); search(); };
$("k").onchange = search;
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) { event.preventDefault(); addFile(file); }
});
let inside = 0;
document.addEventListener("dragenter", (event) => { event.preventDefault(); inside += 1; $("drop").hidden = false; });
document.addEventListener("dragleave", () => { inside -= 1; $("drop").hidden = inside > 0; });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); inside = 0; $("drop").hidden = true; addFile(event.dataTransfer.files[0]); });
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select");
  if (event.key === "/" && !typing) { event.preventDefault(); $("text").focus(); }
  if (event.key === "Escape" && typing) event.target.blur();
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step && event.target.matches(".tile")) {
    const tiles = [...document.querySelectorAll(".tile")];
    tiles[tiles.indexOf(event.target) + step]?.focus();
  }
});
begin();
