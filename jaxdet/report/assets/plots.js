"use strict";
// What the page computes: columns, masks, counts of errors, and plots as SVG. Nothing here touches the document.

const KINDS = ["right", "classification", "localization", "both", "duplicate", "background", "ignored"];
const ERRORS = ["classification", "localization", "both", "duplicate", "background", "missed"];
const MISSED = ERRORS.length - 1;

const escaped = (text) => String(text).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
const number = (value, digits = 3) => (value === undefined || value < 0 ? "–" : value.toFixed(digits));

// A typed array from base64.
function unpacked(text, Type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Type(bytes.buffer);
}

function columnsOf(run) {
  return {
    first: unpacked(run.first, Uint32Array), label: unpacked(run.label, Uint16Array), kind: unpacked(run.kind, Uint8Array),
    score: unpacked(run.score, Int8Array), found: unpacked(run.found, Int8Array), reached: unpacked(run.reached, Int8Array),
  };
}

// How many errors of each kind every image has: [image * 6 + error]. Scores are hundredths. An object is missed where no
// detection from the least score on finds it, or would with another class or box.
function countErrors(truth, run, { label = -1, error = -1, score = 0 } = {}) {
  const images = truth.first.length - 1;
  const counts = new Uint32Array(images * ERRORS.length);
  for (let image = 0; image < images; image++) {
    const base = image * ERRORS.length;
    for (let row = run.first[image]; row < run.first[image + 1]; row++) {
      const which = run.kind[row] - 1;
      if (which < 0 || which >= MISSED || run.score[row] < score) continue;
      if ((label < 0 || run.label[row] === label) && (error < 0 || error === which)) counts[base + which]++;
    }
    if (error >= 0 && error !== MISSED) continue;
    for (let row = truth.first[image]; row < truth.first[image + 1]; row++) {
      if (truth.crowd[row] || run.reached[row] >= score && run.reached[row] >= 0) continue;
      if (label < 0 || truth.label[row] === label) counts[base + MISSED]++;
    }
  }
  return counts;
}

function totals(counts) {
  const sums = new Int32Array(counts.length / ERRORS.length);
  for (let i = 0; i < counts.length; i++) sums[Math.floor(i / ERRORS.length)] += counts[i];
  return sums;
}

// COCO's compressed run lengths: five bits a letter, from the fourth run on the difference to the run two before. The
// result [height * width] goes by columns.
function decodeMask(text, height, width) {
  const mask = new Uint8Array(height * width);
  const runs = [];
  let at = 0;
  for (let place = 0; place < text.length; ) {
    let value = 0, shift = 0, code;
    do {
      code = text.charCodeAt(place++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    if (runs.length % 2) mask.fill(1, at, at + value);
    at += value;
    runs.push(value);
  }
  return mask;
}

// Horizontal bars, a group for each name and in it a bar for each run.
function bars(names, series, colours, length = 240) {
  const most = Math.max(0.01, ...series.flat());
  const high = 14 * series.length + 12;
  const body = names.map((name, i) => {
    const group = series.map((values, s) => {
      const wide = Math.max(0, values[i] / most) * length, y = i * high + 14 * s;
      return `<rect x="120" y="${y}" width="${wide}" height="11" rx="2" fill="${colours(i, s)}"/>` +
        `<text x="${126 + wide}" y="${y + 10}">${(100 * values[i]).toFixed(1)}</text>`;
    });
    return `<g data-error="${escaped(name)}"><text x="0" y="${i * high + 10}">${escaped(name)}</text>${group.join("")}</g>`;
  });
  return `<svg class="plot" viewBox="0 0 ${length + 180} ${names.length * high}">${body.join("")}</svg>`;
}

// Axes from 0 to 1 with what is drawn in them: points are [x, y].
function square(inside, x, y) {
  const ticks = [0, 0.5, 1].map((t) =>
    `<text x="${40 + 300 * t}" y="258" text-anchor="middle">${t}</text><text x="32" y="${244 - 230 * t}" text-anchor="end">${t}</text>`);
  return `<svg class="plot" viewBox="0 0 360 276"><rect class="frame" x="40" y="10" width="300" height="230"/>${ticks.join("")}` +
    `<text x="190" y="272" text-anchor="middle">${x}</text><text x="10" y="125" text-anchor="middle" transform="rotate(-90 10 125)">${y}</text>${inside}</svg>`;
}

function curve(points, colour, dashed = false) {
  const path = points.map(([x, y]) => `${(40 + 300 * x).toFixed(1)},${(240 - 230 * y).toFixed(1)}`).join(" ");
  return `<polyline class="curve" points="${path}" stroke="${colour}"${dashed ? ' stroke-dasharray="4 4"' : ""}/>`;
}

// Shades of a confusion matrix, each row relative to its sum; entries are [truth, prediction, count].
function matrix(entries, names) {
  const size = names.length + 1, cell = Math.max(5, Math.min(26, Math.floor(560 / size))), edge = 96;
  const sums = new Float64Array(size);
  for (const [truth, , count] of entries) sums[truth] += count;
  const cells = entries.map(([truth, found, count]) => {
    const title = `${truth < size - 1 ? names[truth] : "nothing"} → ${found < size - 1 ? names[found] : "nothing"}: ${count}`;
    const colour = truth === found ? "var(--right)" : "var(--missed)";
    return `<rect x="${edge + found * cell}" y="${edge + truth * cell}" width="${cell - 1}" height="${cell - 1}" fill="${colour}" ` +
      `opacity="${(0.08 + 0.92 * count / sums[truth]).toFixed(2)}"><title>${escaped(title)}</title></rect>`;
  });
  const shown = cell >= 10 ? [...names, "nothing"] : [];
  const labels = shown.map((name, i) => {
    const middle = edge + i * cell + cell / 2, text = escaped(name.length > 15 ? `${name.slice(0, 14)}…` : name);
    return `<text x="${edge - 6}" y="${middle + 4}" text-anchor="end">${text}</text>` +
      `<text transform="translate(${middle + 4} ${edge - 6}) rotate(-60)">${text}</text>`;
  });
  const whole = edge + size * cell + 40;
  return `<svg width="${whole}" height="${whole - 40}">${labels.join("")}` +
    `<rect class="frame" x="${edge}" y="${edge}" width="${size * cell}" height="${size * cell}"/>${cells.join("")}</svg>`;
}

if (typeof module !== "undefined") module.exports = { columnsOf, countErrors, decodeMask, escaped, totals, unpacked };
