"use strict";
// The page: what is chosen, the list of images, the picture with its objects, and the tables of numbers.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const truth = {
  first: unpacked(data.truth.first, Uint32Array), label: unpacked(data.truth.label, Uint16Array),
  crowd: unpacked(data.truth.crowd, Uint8Array),
};
const kinds = Object.keys(data.runs[0]);
const runs = data.runs.map((run) => Object.fromEntries(kinds.map((kind) => [kind, columnsOf(run[kind])])));
const two = runs.length > 1;
const RUN_COLOURS = ["var(--accent)", "var(--second)"];
const roomy = matchMedia("(min-width: 1200px)"); // as in the style sheet: a card may have two columns
const ROW = 46; // pixels of a row of the list, as in the style sheet

const chosen = { kind: kinds[0], run: 0, label: -1, error: -1, score: 0, order: "worst", image: 0, row: -1 };
let list = []; // images that match, in order
let counts, sums, otherSums; // of errors, of this run and of the other
const objects = new Map(); // of images that were looked at

// ---- the list of images

function refresh() {
  const filter = { label: chosen.label, error: chosen.error, score: chosen.score };
  counts = countErrors(truth, runs[chosen.run][chosen.kind], filter);
  sums = totals(counts);
  otherSums = two ? totals(countErrors(truth, runs[1 - chosen.run][chosen.kind], filter)) : sums;
  const change = (image) => otherSums[image] - sums[image];
  const matches = (image) => sums[image] > 0 || (two && otherSums[image] > 0);
  const filtered = chosen.label >= 0 || chosen.error >= 0;
  list = data.images.map((_, image) => image).filter((image) => !filtered || matches(image));
  const orders = {
    worst: (a, b) => sums[b] - sums[a], best: (a, b) => sums[a] - sums[b],
    gained: (a, b) => change(a) - change(b), lost: (a, b) => change(b) - change(a), name: (a, b) => a - b,
  };
  list.sort((a, b) => orders[chosen.order](a, b) || a - b);
  at("spacer").style.height = `${list.length * ROW}px`;
  at("score-text").textContent = (chosen.score / 100).toFixed(2);
  const errors = list.reduce((sum, image) => sum + sums[image], 0);
  at("matching").textContent = `${list.length} images, ${errors} errors`;
  at("list").scrollTop = 0;
  chosen.row = -1;
  if (list.length) choose(0);
  else drawRows();
}

function drawRows() {
  const box = at("list"), from = Math.max(0, Math.floor(box.scrollTop / ROW) - 5);
  const to = Math.min(list.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 5);
  const rows = [];
  for (let row = from; row < to; row++) rows.push(rowText(row));
  at("rows").style.top = `${from * ROW}px`;
  at("rows").innerHTML = rows.join("");
}

function rowText(row) {
  const image = list[row], base = image * ERRORS.length;
  const stack = ERRORS.map((name, i) => counts[base + i]
    ? `<i style="background:var(--${name});width:${Math.min(40, counts[base + i] * 8)}px" title="${name}: ${counts[base + i]}"></i>` : "");
  const change = otherSums[image] - sums[image];
  const sign = change > 0 ? "worse" : "better";
  const compared = two ? `<span class="${change ? sign : ""}" title="errors of the other run more or fewer">${change > 0 ? "+" : ""}${change}</span>` : "";
  return `<div class="row${row === chosen.row ? " chosen" : ""}" data-row="${row}"><div><span class="file">` +
    `${escaped(data.images[image].name)}</span><b>${sums[image]}</b>${compared}</div><div class="stack">${stack.join("")}</div></div>`;
}

function choose(row) {
  if (!list.length) return;
  chosen.row = Math.max(0, Math.min(list.length - 1, row));
  chosen.image = list[chosen.row];
  const box = at("list"), y = chosen.row * ROW;
  if (y < box.scrollTop) box.scrollTop = y;
  if (y + ROW > box.scrollTop + box.clientHeight) box.scrollTop = y + ROW - box.clientHeight;
  drawRows();
  drawImage();
}

// ---- the picture

function show(image, content) { // called by images/NUMBER.js
  objects.set(image, content);
  if (image === chosen.image) drawImage();
}

function load(image) {
  const script = document.createElement("script");
  script.src = `images/${image}.js`;
  script.onload = () => script.remove();
  script.onerror = () => { at("objects").textContent = `images/${image}.js is missing: the folder images belongs to this page`; };
  document.head.append(script);
}

// What is drawn: {text, class, kind, colour, box, mask, faded}, of truth and of the chosen run.
function shownObjects(image) {
  const content = objects.get(image), run = runs[chosen.run][chosen.kind], items = [];
  const start = truth.first[image];
  content.truth.forEach(([label, box, crowd, mask], i) => {
    const isMissed = !crowd && (run.reached[start + i] < 0 || run.reached[start + i] < chosen.score);
    const kind = crowd ? "ignored" : isMissed ? "missed" : "truth";
    if (at("show-truth").checked) items.push({ isTruth: true, kind, label, box, mask });
  });
  const first = run.first[image];
  content.runs[chosen.run].forEach(([box, mask], i) => {
    const kind = KINDS[run.kind[first + i]], score = run.score[first + i];
    if (at("show-found").checked && score >= chosen.score && kind !== "ignored")
      items.push({ isTruth: false, kind, label: run.label[first + i], score, box, mask });
  });
  const wrong = (item) => item.kind !== "right" && item.kind !== "truth" && item.kind !== "ignored";
  const meant = (item) => (chosen.label < 0 || item.label === chosen.label) && (chosen.error < 0 || ERRORS[chosen.error] === item.kind);
  for (const item of items) item.faded = (chosen.label >= 0 || chosen.error >= 0) && !meant(item);
  return items.filter((item) => !at("only-wrong").checked || wrong(item));
}

function drawImage() {
  const image = chosen.image, { name, size: [width, height] } = data.images[image];
  at("name").textContent = `${name}  (${chosen.row + 1} of ${list.length})`;
  const room = at("viewer"), scale = Math.min((room.clientWidth - 44) / width, (room.clientHeight - 120) / height, 4);
  at("stage").style.width = `${Math.max(width * scale, 160)}px`;
  at("stage").style.height = `${Math.max(width * scale, 160) * height / width}px`;
  if (data.pictures) at("picture").src = `images/${image}.jpg`;
  else at("picture").hidden = true;
  if (!objects.has(image)) return load(image);
  const items = shownObjects(image);
  drawMasks(items, width, height);
  at("boxes").setAttribute("viewBox", `0 0 ${width} ${height}`);
  at("boxes").innerHTML = items.map((item, i) => item.box
    ? `<rect data-item="${i}" class="${item.isTruth ? "truth" : ""} ${item.faded ? "faded" : ""}" x="${item.box[0]}" y="${item.box[1]}" ` +
      `width="${item.box[2]}" height="${item.box[3]}" style="stroke:var(--${item.kind})"/>` : "").join("");
  const rows = items.map((item, i) => ({ ...item, i })).sort((a, b) => (b.score ?? 101) - (a.score ?? 101));
  at("objects").innerHTML = `<table><tr><th>class</th><th>what</th><th>score</th></tr>${rows.map((item) =>
    `<tr data-item="${item.i}"><td>${escaped(data.classes[item.label])}</td><td><span class="chip" style="background:var(--${item.kind})">` +
    `${item.kind}</span></td><td>${item.isTruth ? "" : (item.score / 100).toFixed(2)}</td></tr>`).join("")}</table>`;
}

function drawMasks(items, width, height) {
  const canvas = at("masks"), scale = Math.min(1, 1024 / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  if (!at("show-masks").checked) return;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (const item of items) {
    if (!item.mask || item.faded) continue;
    const mask = decodeMask(item.mask, height, width), [red, green, blue] = colourOf(item.kind);
    for (let x = 0; x < canvas.width; x++) {
      const column = Math.min(width - 1, Math.floor((x + 0.5) / scale)) * height;
      for (let y = 0; y < canvas.height; y++) {
        if (!mask[column + Math.min(height - 1, Math.floor((y + 0.5) / scale))]) continue;
        const place = 4 * (y * canvas.width + x);
        pixels.data[place] = red; pixels.data[place + 1] = green; pixels.data[place + 2] = blue;
        pixels.data[place + 3] = item.isTruth ? 70 : 110;
      }
    }
  }
  context.putImageData(pixels, 0, 0);
}

// The colour that the style sheet has for a kind, as red, green, blue.
function colourOf(kind) {
  const probe = document.createElement("i");
  probe.style.color = `var(--${kind})`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color.match(/\d+/g).slice(0, 3).map(Number);
  probe.remove();
  return colour;
}

// ---- the numbers

const card = (title, note, body, wide = "") => `<section class="card ${wide}"><h2>${title}</h2><p class="note">${note}</p>${body}</section>`;
const legend = () => two
  ? `<p class="legend">${data.reports.map((each, i) => `<span><i class="dot" style="background:${RUN_COLOURS[i]}"></i>${escaped(each.name)}</span>`).join("")}</p>` : "";

function drawNumbers() {
  const kind = chosen.kind, reports = data.reports, mine = reports.map((each) => each[kind]), main = mine[chosen.run];
  const label = chosen.label, curves = mine.map((each) => (label < 0 ? each : each.classes[label]).precision);
  const prices = mine.map((each) => Object.values(each.prices)), names = Object.keys(main.prices);
  const colour = (i, s) => two ? RUN_COLOURS[s] : names[i].includes(" ") ? "var(--faint)" : `var(--${names[i]})`;
  const steps = (values, tint) => curve(values.map((y, i) => [i / 100, y]), tint);
  const diagonal = curve([[0, 0], [1, 1]], "var(--line)", true);
  const reliable = mine.map((each, s) => curve(each.reliability.count.map((n, i) => [n, each.reliability.score[i], each.reliability.precision[i]])
    .filter(([n]) => n).map(([, x, y]) => [x, y]), RUN_COLOURS[s])).join("");
  at("numbers").innerHTML =
    card("Scores", "COCO's numbers, and the score from which on detections are best counted (F1 at an IoU of 0.5).", legend() + scoreTable(kind), "tall") +
    card("What errors cost", "AP50 in points that putting one kind of error right would gain (TIDE). Click on one to see its images.", legend() + bars(names, prices, colour, roomy.matches ? 660 : 240), "double") +
    card("Precision and recall", `At an IoU of 0.5, ${label < 0 ? "mean over the classes" : escaped(data.classes[label])}.`,
      legend() + square(curves.map((values, s) => steps(values, RUN_COLOURS[s])).join(""), "recall", "precision")) +
    card("Are scores true?", `How often detections of a score are right. Below the diagonal a model is too sure of itself. Expected calibration error: ${mine.map((each) => number(each.reliability.error)).join(", ")}.`,
      legend() + square(diagonal + reliable, "score", "share that is right")) +
    card("What is taken for what", `Detections of ${escaped(reports[chosen.run].name)} from the best threshold on; rows are the truth.`, confusionText(main), "wide") +
    card("Classes", "Click on a class to see its images, on a heading to sort.", classTable(main), "wide");
}

function scoreTable(kind) {
  const reports = data.reports, first = reports[0];
  const rows = Object.keys(first.coco).filter((key) => key.startsWith(`${kind}/`)).map((key) => [key.split("/")[1], reports.map((each) => each.coco[key])]);
  // The last of a row: whether more is better (1), worse (-1) or neither (0).
  rows.push(["best threshold", reports.map((each) => each[kind].best?.score), 3, 0]);
  for (const name of ["f1", "precision", "recall"]) rows.push([`${name} there`, reports.map((each) => each[kind].best?.[name])]);
  const big = (value) => value === undefined ? undefined : value / 1e6;
  rows.push(["parameters, millions", reports.map((each) => big(each.model.parameters)), 1, -1]);
  rows.push(["GFLOPs of an image, at least", reports.map((each) => each.model.flops === undefined ? undefined : each.model.flops / 1e9), 1, -1]);
  rows.push(["images a second", reports.map((each) => each.model.images_per_second), 2]);
  const known = rows.filter(([, values]) => values.some((value) => value !== undefined));
  return `<table><tr><th></th>${reports.map((each) => `<th>${escaped(each.name)}</th>`).join("")}${two ? "<th>change</th>" : ""}</tr>` +
    known.map(([name, values, digits, better]) => `<tr><td>${name}</td>${values.map((value) => `<td>${number(value, digits)}</td>`).join("")}${two ? changed(values, digits, better) : ""}</tr>`).join("") + "</table>";
}

function changed([before, after], digits = 3, better = 1) {
  if (before === undefined || after === undefined || before < 0 || after < 0) return "<td></td>";
  const value = after - before, gain = value * better;
  return `<td class="${gain > 0 ? "better" : gain < 0 ? "worse" : ""}">${value > 0 ? "+" : ""}${value.toFixed(digits)}</td>`;
}

function confusionText(main) {
  const name = (label) => escaped(label < data.classes.length ? data.classes[label] : "nothing");
  const mixed = main.confusions.filter(([a, b]) => a !== b && Math.max(a, b) < data.classes.length).sort((a, b) => b[2] - a[2]).slice(0, 12);
  const table = `<table><tr><th>is</th><th>taken for</th><th>times</th></tr>${mixed.map(([a, b, n]) => `<tr><td>${name(a)}</td><td>${name(b)}</td><td>${n}</td></tr>`).join("")}</table>`;
  const picture = data.classes.length <= 100 ? matrix(main.confusions, data.classes) : "";
  return `<div style="display:flex;gap:40px;flex-wrap:wrap;align-items:flex-start"><div style="min-width:260px">${mixed.length ? table : "No class is taken for another."}</div>${picture}</div>`;
}

const COLUMNS = ["objects", "AP", "AP50", "AP_s", "AP_m", "AP_l", "AR100"];
let sorting = ["AP", 1];

function classTable(main) {
  const [key, sign] = sorting;
  const rows = main.classes.map((row, label) => ({ ...row, label, threshold: row.best ? row.best.score : -1, F1: row.best ? row.best.f1 : -1 }));
  rows.sort((a, b) => key === "name" ? sign * a.name.localeCompare(b.name) : sign * (a[key] - b[key]) || a.label - b.label);
  const heads = ["name", ...COLUMNS, "threshold", "F1"];
  return `<table><tr>${heads.map((head) => `<th class="sort" data-sort="${head}">${head === "name" ? "class" : head}${head === key ? (sign > 0 ? " ↑" : " ↓") : ""}</th>`).join("")}</tr>` +
    rows.map((row) => `<tr class="link" data-label="${row.label}"><td>${escaped(row.name)}</td><td>${row.objects}</td>` +
      [...COLUMNS.slice(1), "threshold", "F1"].map((column) => `<td>${number(row[column])}</td>`).join("") + "</tr>").join("") + "</table>";
}

// ---- what can be chosen

function go(view) {
  at("numbers").hidden = view !== "numbers";
  at("images").hidden = view !== "images";
  at("to-numbers").setAttribute("aria-current", view === "numbers");
  at("to-images").setAttribute("aria-current", view === "images");
  if (view === "numbers") drawNumbers();
  else refresh();
}

const redraw = () => (at("images").hidden ? drawNumbers() : refresh());

function startScore() {
  const best = data.reports[chosen.run][chosen.kind].best;
  chosen.score = best ? Math.floor(best.score * 100 + 1e-9) : 0;
  at("score").value = chosen.score;
}

function options(id, pairs, value) {
  at(id).innerHTML = pairs.map(([key, text]) => `<option value="${key}">${escaped(text)}</option>`).join("");
  at(id).value = value;
}

function start() {
  const words = { bbox: "boxes", segm: "masks" };
  options("kind", kinds.map((kind) => [kind, words[kind]]), chosen.kind);
  options("run", data.reports.map((each, i) => [i, each.name]), 0);
  options("class", [[-1, "all"], ...data.classes.map((name, label) => [label, name])], -1);
  options("error", [[-1, "any"], ...ERRORS.map((name, i) => [i, name])], -1);
  const orders = [["worst", "most errors"], ["best", "fewest errors"], ["name", "order of ids"]];
  options("order", two ? [...orders, ["gained", "the other run is better"], ["lost", "the other run is worse"]] : orders, "worst");
  at("run-choice").hidden = !two;
  at("numbers").classList.toggle("two", two);
  const { images, objects: things } = data.reports[0];
  at("about").textContent = `${data.reports.map((each) => each.name).join(" and ")}: ${images} images, ${things} objects`;

  at("kind").onchange = (event) => { chosen.kind = event.target.value; startScore(); redraw(); };
  at("run").onchange = (event) => { chosen.run = Number(event.target.value); startScore(); redraw(); };
  at("class").onchange = (event) => { chosen.label = Number(event.target.value); refresh(); };
  at("error").onchange = (event) => { chosen.error = Number(event.target.value); refresh(); };
  at("order").onchange = (event) => { chosen.order = event.target.value; refresh(); };
  at("score").oninput = (event) => { chosen.score = Number(event.target.value); refresh(); };
  at("list").onscroll = drawRows;
  at("rows").onclick = (event) => { const row = event.target.closest(".row"); if (row) choose(Number(row.dataset.row)); };
  at("previous").onclick = () => choose(chosen.row - 1);
  at("next").onclick = () => choose(chosen.row + 1);
  for (const id of ["show-truth", "show-found", "show-masks", "only-wrong"]) at(id).onchange = drawImage;
  at("to-numbers").onclick = () => go("numbers");
  at("to-images").onclick = () => go("images");
  at("theme").onclick = () => {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
      (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  };
  at("numbers").onclick = (event) => {
    const error = event.target.closest("[data-error]"), row = event.target.closest("[data-label]"), head = event.target.closest("[data-sort]");
    if (head) { sorting = head.dataset.sort === sorting[0] ? [sorting[0], -sorting[1]] : [head.dataset.sort, 1]; return drawNumbers(); }
    if (!row && !(error && ERRORS.includes(error.dataset.error))) return;
    chosen.label = row ? Number(row.dataset.label) : -1;
    chosen.error = row ? -1 : ERRORS.indexOf(error.dataset.error);
    at("class").value = chosen.label;
    at("error").value = chosen.error;
    go("images");
  };
  const mark = (event) => {
    const item = event.target.closest?.("[data-item]")?.dataset.item;
    for (const rect of at("boxes").children) rect.style.strokeWidth = rect.dataset.item === item ? "5" : "";
  };
  at("objects").onmouseover = mark;
  document.onkeydown = (event) => {
    if (at("images").hidden || event.ctrlKey || event.metaKey || event.target.matches("select, input[type=range]")) return;
    const moves = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
    const boxes = { t: "show-truth", p: "show-found", m: "show-masks", e: "only-wrong" };
    if (moves[event.key]) choose(chosen.row + moves[event.key]);
    else if (boxes[event.key]) { at(boxes[event.key]).checked ^= true; drawImage(); }
    else if (event.key === "r" && two) { at("run").value = chosen.run = 1 - chosen.run; keepImage(); }
    else return;
    event.preventDefault();
  };
  roomy.onchange = () => { if (!at("numbers").hidden) drawNumbers(); };
  window.onresize = () => { if (!at("images").hidden) { drawRows(); drawImage(); } };
  startScore();
  go(location.hash === "#images" ? "images" : "numbers");
}

// The other run, on the image that is looked at.
function keepImage() {
  const image = chosen.image;
  refresh();
  choose(list.indexOf(image));
}

start();
