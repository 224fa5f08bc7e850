// The map with what a person does on it; pointing at a mark shows its image and its nearest.
class FeatureMap extends MapCanvas {
  constructor(box, data, run) {
    super(data);
    this.run = run;
    this.canvas.setAttribute("aria-label", `Map of ${this.n} images of ${run}. Arrow keys go from image to image.`);
    this.tip = make("div", { class: "tip", hidden: "" });
    this.readout = make("output", { "aria-live": "polite" });
    box.append(this.tools(), make("div", { class: "plot" }, this.canvas, this.tip), this.legend(), this.readout);
    this.listen();
    new ResizeObserver(() => this.resize()).observe(box);
  }

  tools() {
    const pictures = button("Pictures", () => {
      this.pictures = !this.pictures;
      pictures.setAttribute("aria-pressed", this.pictures);
      this.draw();
    });
    pictures.setAttribute("aria-pressed", "false");
    const larger = button("+", () => this.zoomBy(1.6)),
      smaller = button("−", () => this.zoomBy(1 / 1.6));
    larger.setAttribute("aria-label", "Zoom in");
    smaller.setAttribute("aria-label", "Zoom out");
    return make(
      "div",
      { class: "tools" },
      pictures,
      larger,
      smaller,
      button("Whole", () => this.zoomBy(0)),
      button("CSV", () => download(`map-${this.run}.csv`, this.rows())),
    );
  }

  legend() {
    const legend = make("div", {
      class: "legend",
      role: "group",
      "aria-label": "Classes: choose some to set them off",
    });
    if (!this.data.labels) return legend;
    const there = new Set(this.data.labels);
    this.data.classes.forEach((name, label) => {
      if (!there.has(label)) return;
      const mark = draw("svg", { viewBox: "-1.4 -1.4 2.8 2.8", "aria-hidden": "true" });
      mark.append(draw("path", { d: shapeOf(label), fill: colourOf(label) }));
      const toggle = make("button", { type: "button", "aria-pressed": "false" }, mark, name);
      toggle.addEventListener("click", () => {
        if (!this.chosen.delete(label)) this.chosen.add(label);
        toggle.setAttribute("aria-pressed", this.chosen.has(label));
        this.draw();
      });
      legend.append(toggle);
    });
    return legend;
  }

  rows() {
    const { x, y, labels, classes, names } = this.data;
    return [
      ["image", "x", "y", "class"],
      ...x.map((_, i) => [names ? names[i] : i, x[i], y[i], labels ? classes[labels[i]] : ""]),
    ];
  }

  name(i) {
    const { labels, classes, names } = this.data;
    return [labels ? classes[labels[i]] : "", names ? names[i] : ""].filter(Boolean).join(", ") || `image ${i}`;
  }

  listen() {
    const canvas = this.canvas;
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      from = this.zoom > 1 ? [event.clientX, event.clientY] : null;
      this.show(this.nearest(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from || !event.buttons) return this.show(this.nearest(event));
      this.left += event.clientX - from[0];
      this.top += event.clientY - from[1];
      from = [event.clientX, event.clientY];
      this.show(-1);
      this.move();
    });
    // A finger leaves as soon as it is lifted: what it tapped stays.
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "touch" || this.show(-1));
    canvas.addEventListener("blur", () => this.show(-1));
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey) return; // a wheel alone scrolls the page
        event.preventDefault();
        this.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.offsetX, event.offsetY);
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Escape") this.show(-1);
      if (!way) return;
      event.preventDefault();
      this.show(this.towards(way));
    });
  }

  zoomBy(factor, x = this.width / 2, y = this.height / 2) {
    this.show(-1);
    const before = this.zoom;
    this.zoom = factor ? Math.min(40, Math.max(1, before * factor)) : 1;
    this.left = x - ((x - this.left) * this.zoom) / before;
    this.top = y - ((y - this.top) * this.zoom) / before;
    this.canvas.style.touchAction = this.zoom > 1 ? "none" : "pan-y";
    this.move();
  }

  // Keeps the map on the canvas, and draws it.
  move() {
    this.left = Math.min(0, Math.max(this.width * (1 - this.zoom), this.left));
    this.top = Math.min(0, Math.max(this.height * (1 - this.zoom), this.top));
    this.draw();
  }

  nearest(event) {
    const box = this.canvas.getBoundingClientRect(),
      x = event.clientX - box.left,
      y = event.clientY - box.top;
    if (this.pictures && this.ready) return this.pictured?.get(this.cell(x, y)) ?? -1;
    let best = -1,
      least = 24 ** 2;
    for (let i = 0; i < this.n; i++) {
      if (!this.visible(i)) continue;
      const [px, py] = this.place(i),
        distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  // The nearest point that lies in a direction; sideways distance counts double.
  towards([dx, dy]) {
    if (this.at < 0) return this.data.x.findIndex((_, i) => this.visible(i));
    const [x, y] = this.place(this.at);
    let best = this.at,
      least = Infinity;
    for (let i = 0; i < this.n; i++) {
      const [px, py] = this.place(i),
        along = (px - x) * dx + (py - y) * dy,
        aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (i === this.at || along <= 0.5 || !this.visible(i)) continue;
      if (along + 2 * aside < least) [best, least] = [i, along + 2 * aside];
    }
    return best;
  }

  thumbnail(i, size) {
    const { side, columns } = this.data,
      canvas = make("canvas", { width: side, height: side, style: `width:${size}px;height:${size}px` });
    if (this.ready)
      canvas
        .getContext("2d")
        .drawImage(this.sheet, (i % columns) * side, Math.floor(i / columns) * side, side, side, 0, 0, side, side);
    return canvas;
  }

  show(i) {
    if (i === this.at) return;
    this.at = i;
    this.tip.hidden = i < 0;
    this.draw();
    if (i < 0) {
      this.readout.textContent = "";
      return;
    }
    const near = make("div", { class: "near" }, ...this.data.links[i].map((j) => this.thumbnail(j, 36)));
    this.tip.replaceChildren(
      this.thumbnail(i, 112),
      make("p", {}, make("strong", {}, this.name(i))),
      make("p", {}, "nearest features:"),
      near,
    );
    this.readout.textContent = `${this.name(i)}; its nearest: ${this.data.links[i].map((j) => this.name(j)).join("; ")}`;
    const [x, y] = this.place(i),
      w = this.tip.offsetWidth,
      h = this.tip.offsetHeight;
    this.tip.style.left = `${Math.max(0, x + 18 + w > this.width ? x - w - 18 : x + 18)}px`;
    this.tip.style.top = `${Math.max(0, Math.min(this.height - h, y - h / 2))}px`;
  }
}

const MAPS = DATA.maps.map(
  (data, i) => data && new FeatureMap(document.getElementById(`map-${i}`), data, DATA.runs[i].name),
);
