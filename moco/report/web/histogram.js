// Counts of cosines at one step, positives and negatives of a run; a slider goes through the steps.
class Histogram {
  constructor(run, index) {
    this.histograms = DATA.histograms.flatMap((key, k) =>
      run.curves[key] ? [{ key, k, name: key.split("_")[0] + "s", ...run.curves[key] }] : [],
    );
    const [title, unit, about] = known(DATA.histograms[0]);
    const last = this.histograms[0].value.length - 1;
    this.svg = draw("svg", { role: "img", "aria-label": `${title} of ${run.name}` });
    this.slider = make("input", {
      type: "range",
      min: 0,
      max: last,
      value: last,
      "aria-label": `Step of ${title} of ${run.name}`,
    });
    this.readout = make("output", { "aria-live": "polite" });
    this.slider.addEventListener("input", () => this.draw());
    const name = DATA.runs.length > 1 ? ` ${unit}, ${run.name}` : ` ${unit}`;
    this.element = make(
      "figure",
      { class: "panel", id: `histogram-${index}` },
      make("h3", {}, title, make("span", {}, name)),
      make("p", {}, about),
      this.svg,
      this.readout,
      this.slider,
    );
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  draw() {
    const width = this.svg.clientWidth,
      at = Number(this.slider.value);
    if (!width) return;
    this.svg.replaceChildren();
    const shares = this.histograms.map((part) => {
      const counts = part.value[Math.min(at, part.value.length - 1)],
        sum = counts.reduce((a, b) => a + b, 0) || 1;
      return counts.map((count) => count / sum);
    });
    const high = Math.max(...shares.flat()) * 1.15 || 1;
    const [sx, sy] = frame(this.svg, width, 12, [-1, 1], [0, high], "%", "cosine");
    this.histograms.forEach((part, k) => {
      const share = shares[k],
        w = 2 / share.length;
      const outline = [
        [-1, 0],
        ...share.flatMap((y, i) => [
          [-1 + i * w, y],
          [-1 + (i + 1) * w, y],
        ]),
        [1, 0],
      ];
      this.svg.append(
        draw("path", {
          d: path(outline, sx, sy),
          fill: colourOf(part.k),
          "fill-opacity": part.k ? 0 : 0.25,
          stroke: colourOf(part.k),
          "stroke-width": 2,
          "stroke-dasharray": DASHES[part.k],
        }),
      );
      const peak = share.indexOf(Math.max(...share));
      const label = draw(
        "text",
        {
          class: "label",
          x: Math.min(sx(-1 + (peak + 0.5) * w), width - 40),
          y: sy(share[peak]) - 4,
          "text-anchor": "middle",
        },
        part.name,
      );
      label.style.fill = colourOf(part.k);
      this.svg.append(label);
    });
    this.readout.textContent = `step ${this.histograms[0].step[at].toLocaleString("en")}`;
  }
}
