// Curves over the steps, those of all runs in one panel for each figure.
let axis = "epoch";
const HEIGHT = 210,
  TOP = 10,
  BOTTOM = 24,
  LEFT = 46;

const known = (key) => DATA.known[key] || [key, "", ""];

function spell(value, unit) {
  if (value === null || value === undefined) return "not finite";
  if (unit === "%") return `${Number((100 * value).toPrecision(3))} %`;
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.99);
  const first = Math.ceil(low / step - 1e-9),
    found = [];
  for (let i = first; i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(10)));
  return found;
}

function extent(values) {
  let low = Infinity,
    high = -Infinity;
  for (const value of values)
    if (value !== null) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  if (low > high) return [0, 1];
  const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.5;
  return [low - room, high + room];
}

// The points of a curve, of many only as many as there is room for: their means, and the range around them.
function thinned(xs, ys, room) {
  const finite = ys.flatMap((y, i) => (y === null ? [] : [i]));
  if (finite.length <= room) return { mean: finite.map((i) => [xs[i], ys[i]]), raw: null };
  const size = Math.ceil(finite.length / (room / 2)),
    mean = [],
    raw = [];
  for (let start = 0; start < finite.length; start += size) {
    const part = finite.slice(start, start + size),
      of = part.map((i) => ys[i]);
    const x = part.reduce((sum, i) => sum + xs[i], 0) / part.length;
    mean.push([x, of.reduce((a, b) => a + b) / of.length]);
    raw.push([x, Math.min(...of)], [x, Math.max(...of)]);
  }
  // The ends are those of the curve.
  mean[0][0] = xs[finite[0]];
  mean[mean.length - 1][0] = xs[finite[finite.length - 1]];
  return { mean, raw };
}

const path = (points, sx, sy) =>
  points.map(([x, y], i) => `${i ? "L" : "M"}${sx(x).toFixed(1)} ${sy(y).toFixed(1)}`).join("");

function frame(svg, width, right, [x0, x1], [y0, y1], unit, name) {
  const sx = (x) => LEFT + ((x - x0) / (x1 - x0 || 1)) * (width - LEFT - right);
  const sy = (y) => HEIGHT - BOTTOM - ((y - y0) / (y1 - y0 || 1)) * (HEIGHT - TOP - BOTTOM);
  const scale = unit === "%" ? 100 : 1;
  for (const y of ticks(y0 * scale, y1 * scale, 4)) {
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: width - right, y1: sy(y / scale), y2: sy(y / scale) }));
    svg.append(
      draw(
        "text",
        { class: "tick", x: LEFT - 6, y: sy(y / scale) + 4, "text-anchor": "end" },
        y.toLocaleString("en", { maximumSignificantDigits: 6, notation: Math.abs(y) >= 1e5 ? "compact" : "standard" }),
      ),
    );
  }
  for (const x of ticks(x0, x1, Math.max(2, Math.floor((width - LEFT - right) / 60)))) {
    if (sx(x) > width - right - 45) continue; // the axis' name stands there
    svg.append(
      draw("text", { class: "tick", x: sx(x), y: HEIGHT - 7, "text-anchor": "middle" }, x.toLocaleString("en")),
    );
  }
  svg.append(draw("text", { class: "tick", x: width - right, y: HEIGHT - 7, "text-anchor": "end" }, name));
  return [sx, sy];
}

// Names beside the ends of the lines, moved apart where they would lie on each other.
function nameLines(svg, ends, x) {
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => {
    if (i) end.y = Math.max(end.y, ends[i - 1].y + 13);
  });
  let lowest = HEIGHT - BOTTOM;
  for (const end of [...ends].reverse()) {
    end.y = Math.min(end.y, lowest);
    lowest = end.y - 13;
  }
  for (const end of ends) {
    const label = draw(
      "text",
      { class: "label", x, y: end.y + 4 },
      end.name.length > 14 ? `${end.name.slice(0, 13)}…` : end.name,
    );
    label.style.fill = end.colour;
    svg.append(label);
  }
}

class Panel {
  constructor(key) {
    this.key = key;
    [this.title, this.unit, this.about] = known(key);
    this.curves = DATA.runs.flatMap((run, i) => (run.curves[key] ? [{ run, i, ...run.curves[key] }] : []));
    this.svg = draw("svg", { tabindex: 0, role: "img", "aria-label": this.described() });
    this.readout = make("output", { "aria-live": "polite" });
    const heading = make(
      "h3",
      {},
      this.title,
      make("span", {}, this.unit && this.unit !== "%" ? ` ${this.unit}` : this.unit && " %"),
    );
    const save = button("CSV", () => download(`${key}.csv`, this.rows()));
    save.setAttribute("aria-label", `Download ${this.title} as CSV`);
    this.element = make(
      "figure",
      { class: "panel", id: `panel-${key}` },
      heading,
      make("p", {}, this.about),
      this.svg,
      this.readout,
      save,
    );
    this.svg.addEventListener("pointermove", (event) => this.point(event.clientX));
    this.svg.addEventListener("pointerdown", (event) => this.point(event.clientX));
    this.svg.addEventListener("pointerleave", (event) => event.pointerType === "touch" || this.leave());
    this.svg.addEventListener("blur", () => this.leave());
    this.svg.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  described() {
    const ends = this.curves.map(
      (c) => `${c.run.name} from ${spell(c.value[0], this.unit)} to ${spell(c.value[c.value.length - 1], this.unit)}`,
    );
    return `${this.title}: ${ends.join("; ")}. Arrow keys read the values.`;
  }

  rows() {
    const rows = [["run", "step", "epoch", this.key]];
    for (const c of this.curves) c.step.forEach((step, i) => rows.push([c.run.name, step, c.epoch[i], c.value[i]]));
    return rows;
  }

  draw() {
    const width = this.svg.clientWidth;
    if (!width) return;
    this.svg.replaceChildren();
    const longest = Math.max(...this.curves.map((c) => Math.min(14, c.run.name.length)));
    const right = DATA.runs.length > 1 ? 12 + 6.2 * longest : 12;
    const known = this.key === "loss" ? this.curves.flatMap((c) => (c.run.chance ? [c.run.chance] : [])) : [];
    const chances = [...new Map(known.map((chance) => [chance.join(), chance])).values()];
    const xs = this.curves.map((c) => c[axis].map((x) => x ?? 0));
    const [low, high] = extent(this.curves.flatMap((c) => c.value).concat(chances.map(([y]) => y)));
    const ends = [Math.min(...xs.map((x) => x[0])), Math.max(...xs.map((x) => x[x.length - 1]))];
    [this.sx, this.sy] = frame(this.svg, width, right, ends, [low, high], this.unit, axis);
    for (const [y, name] of chances) {
      this.svg.append(draw("line", { class: "chance", x1: LEFT, x2: width - right, y1: this.sy(y), y2: this.sy(y) }));
      this.svg.append(
        draw(
          "text",
          { class: "label", x: width - right - 4, y: this.sy(y) + 13, "text-anchor": "end" },
          `${name} = ${y.toFixed(2)}`,
        ),
      );
    }
    const names = [];
    this.curves.forEach((c, k) => {
      const { mean, raw } = thinned(xs[k], c.value, Math.max(100, width - LEFT - right));
      if (!mean.length) return;
      const style = { stroke: colourOf(c.i), "stroke-dasharray": DASHES[c.i % DASHES.length] };
      if (raw) this.svg.append(draw("path", { class: "raw", d: path(raw, this.sx, this.sy), stroke: colourOf(c.i) }));
      this.svg.append(draw("path", { class: "line", d: path(mean, this.sx, this.sy), ...style }));
      if (mean.length <= 25)
        for (const [x, y] of mean)
          this.svg.append(
            draw("path", {
              d: shapeOf(c.i),
              fill: colourOf(c.i),
              transform: `translate(${this.sx(x)} ${this.sy(y)}) scale(3.5)`,
            }),
          );
      names.push({ name: c.run.name, colour: colourOf(c.i), y: this.sy(mean[mean.length - 1][1]) });
    });
    if (DATA.runs.length > 1) nameLines(this.svg, names, width - right + 5);
    this.marks = this.svg.appendChild(draw("g"));
    this.xs = xs;
    this.leave();
  }

  // Shows the values at the points nearest to a place on the screen.
  point(clientX) {
    const x = clientX - this.svg.getBoundingClientRect().left;
    const c = this.xs.findIndex((values) => values.length);
    const near = (values) =>
      values.reduce((best, v, i) => (Math.abs(this.sx(v) - x) < Math.abs(this.sx(values[best]) - x) ? i : best), 0);
    if (c >= 0) this.show(this.xs.map(near));
  }

  show(places) {
    this.places = places;
    this.marks.replaceChildren();
    const first = this.curves[0],
      at = places[0],
      x = this.sx(this.xs[0][at]);
    this.marks.append(draw("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    const values = this.curves.map((c, k) => {
      const value = c.value[places[k]];
      if (value !== null)
        this.marks.append(
          draw("circle", { cx: this.sx(this.xs[k][places[k]]), cy: this.sy(value), r: 4, fill: colourOf(c.i) }),
        );
      const step = k && c.step[places[k]] !== first.step[at] ? ` (step ${c.step[places[k]].toLocaleString("en")})` : "";
      return (DATA.runs.length > 1 ? `${c.run.name} ` : "") + spell(value, this.unit) + step;
    });
    const epoch = first.epoch[at] === null ? "" : `, epoch ${Number(first.epoch[at].toFixed(2))}`;
    this.readout.textContent = `step ${first.step[at].toLocaleString("en")}${epoch}: ${values.join("; ")}`;
  }

  leave() {
    this.show(this.curves.map((c) => c.value.length - 1));
    this.marks.replaceChildren();
    this.places = null;
  }

  step(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !this.xs) return;
    event.preventDefault();
    const values = this.xs[0],
      at = this.places ? this.places[0] + by : 0;
    const x = values[Math.max(0, Math.min(values.length - 1, at))];
    this.point(this.svg.getBoundingClientRect().left + this.sx(x));
  }
}

function setUpCurves() {
  const box = document.getElementById("panels");
  const order = Object.keys(DATA.known),
    place = (key) => (order.includes(key) ? order.indexOf(key) : order.length);
  const keys = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.curves)))].sort((a, b) => place(a) - place(b));
  const panels = [];
  for (const key of keys) {
    if (key === keys.find((k) => DATA.histograms.includes(k))) {
      DATA.runs.forEach((run, i) => {
        if (DATA.histograms.some((k) => run.curves[k])) box.append(new Histogram(run, i).element);
      });
    }
    if (DATA.histograms.includes(key)) continue;
    panels.push(new Panel(key));
    box.append(panels[panels.length - 1].element);
  }
  const timed = DATA.runs.every((run) => Object.values(run.curves).every((c) => c.epoch.every((e) => e !== null)));
  axis = timed ? "epoch" : "step";
  if (!timed || !panels.length) return;
  const choose = make(
    "select",
    { id: "axis" },
    make("option", { value: "epoch" }, "epochs"),
    make("option", { value: "step" }, "steps"),
  );
  choose.addEventListener("change", () => {
    axis = choose.value;
    panels.forEach((panel) => panel.draw());
  });
  box.before(make("p", { class: "tools" }, make("label", { for: "axis" }, "Over"), choose));
}

setUpCurves();
