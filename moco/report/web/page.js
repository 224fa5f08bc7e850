"use strict";
// What every section of the page uses; all text from a run goes through textContent.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
// Lines and marks differ in these as well as in colour.
const DASHES = ["", "7 4", "2 3", "10 3 2 3", "4 2", "12 5", "2 6", "8 3 2 3 2 3"];
const SHAPES = [
  "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0 -1 0Z",
  "M-.9 -.9H.9V.9H-.9Z",
  "M0 -1.15L1.1 .85H-1.1Z",
  "M0 -1.25L1.1 0L0 1.25L-1.1 0Z",
  "M-.38 -1.1H.38V-.38H1.1V.38H.38V1.1H-.38V.38H-1.1V-.38H-.38Z",
  "M0 1.15L1.1 -.85H-1.1Z",
  "M-1 -.5L-.5 -1L0 -.5L.5 -1L1 -.5L.5 0L1 .5L.5 1L0 .5L-.5 1L-1 .5L-.5 0Z",
  "M0 -1.3L.38 -.45L1.25 -.4L.6 .2L.8 1.1L0 .62L-.8 1.1L-.6 .2L-1.25 -.4L-.38 -.45Z",
  "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0 -1 0ZM-.45 0A.45 .45 0 1 1 .45 0A.45 .45 0 1 1 -.45 0Z",
  "M-1.2 -.45H1.2V.45H-1.2Z",
];
const COLOURS = 10;
const colourOf = (i) => `var(--c${i % COLOURS})`;
// Colours and shapes go round with a shift, so that no two of the first hundred classes share both.
const shapeOf = (i) => SHAPES[(i + Math.floor(i / COLOURS)) % SHAPES.length];

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

function button(text, act) {
  const element = make("button", { type: "button" }, text);
  element.addEventListener("click", act);
  return element;
}

function csv(rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : Array.isArray(value) ? value.join(" ") : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",") + "\n").join("");
}

function download(name, rows) {
  const link = make("a", { download: name, href: URL.createObjectURL(new Blob([csv(rows)], { type: "text/csv" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function metricsRows() {
  const keys = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.curves)))];
  const rows = [["run", "step", "epoch", ...keys]];
  for (const run of DATA.runs) {
    const steps = new Map();
    for (const [key, curve] of Object.entries(run.curves)) {
      curve.step.forEach((step, i) => {
        if (!steps.has(step)) steps.set(step, { epoch: curve.epoch[i] });
        steps.get(step)[key] = curve.value[i];
      });
    }
    for (const [step, values] of [...steps].sort((a, b) => a[0] - b[0])) {
      rows.push([run.name, step, values.epoch, ...keys.map((key) => values[key])]);
    }
  }
  return rows;
}

function setUpTheme() {
  const toggle = document.getElementById("theme");
  const root = document.documentElement;
  let dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const show = () => {
    toggle.textContent = dark ? "Light" : "Dark";
  };
  toggle.addEventListener("click", () => {
    dark = !dark;
    root.style.colorScheme = dark ? "dark" : "light";
    show();
    dispatchEvent(new Event("theme"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    if (root.style.colorScheme) return;
    dark = event.matches;
    show();
    dispatchEvent(new Event("theme"));
  });
  show();
}

function setUpButtons() {
  for (const copy of document.querySelectorAll("button.copy")) {
    const code = copy.parentElement.querySelector("code");
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        copy.textContent = "Copied";
      } catch {
        // a page from a file may not be allowed to: the text is selected, for Ctrl-C
        getSelection().selectAllChildren(code);
        copy.textContent = "Selected";
      }
    });
  }
  for (const save of document.querySelectorAll("button.csv-of-table")) {
    const rows = [...save.parentElement.querySelectorAll("table tr")];
    save.addEventListener("click", () =>
      download(
        "results.csv",
        rows.map((row) => [...row.cells].map((c) => c.textContent)),
      ),
    );
  }
  document.getElementById("csv-metrics")?.addEventListener("click", () => download("metrics.csv", metricsRows()));
}

setUpTheme();
setUpButtons();
