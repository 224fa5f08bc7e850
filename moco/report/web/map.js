// The map of a run's features: a canvas of marks or pictures; pointing at one shows its image and its nearest.
const SINGLE = 24;  // up to so many classes are named on the map itself

// What a CSS colour is at the moment, for the canvas.
function resolved(colour) {
  const probe = document.body.appendChild(make("span", { style: `color:${colour}` }));
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

class FeatureMap {
  constructor(box, data, run) {
    Object.assign(this, { box, data, run, chosen: new Set(), at: -1, pictures: false, zoom: 1, left: 0, top: 0 });
    this.n = data.x.length;
    this.sheet = new Image();
    this.sheet.src = data.sheet;
    this.sheet.decode().then(() => { this.ready = true; this.draw(); });
    this.shapes = SHAPES.map((shape) => new Path2D(shape));
    this.canvas = make("canvas", { class: "points", tabindex: 0, role: "img", "aria-label": `Map of ${this.n} images of ${run}. Arrow keys go from image to image.` });
    this.tip = make("div", { class: "tip", hidden: "" });
    this.told = make("output", { "aria-live": "polite" });
    box.append(this.tools(), make("div", { class: "plot" }, this.canvas, this.tip), this.legend(), this.told);
    this.listen();
    new ResizeObserver(() => this.resize()).observe(box);
    addEventListener("theme", () => { this.colours = null; this.draw(); });
  }

  tools() {
    const pictures = button("Pictures", () => { this.pictures = !this.pictures; pictures.setAttribute("aria-pressed", this.pictures); this.draw(); });
    pictures.setAttribute("aria-pressed", "false");
    const larger = button("+", () => this.zoomBy(1.6)), smaller = button("−", () => this.zoomBy(1 / 1.6));
    larger.setAttribute("aria-label", "Zoom in");
    smaller.setAttribute("aria-label", "Zoom out");
    return make("div", { class: "tools" }, pictures, larger, smaller, button("Whole", () => this.zoomBy(0)), button("CSV", () => download(`map-${this.run}.csv`, this.rows())));
  }

  legend() {
    const legend = make("div", { class: "legend", role: "group", "aria-label": "Classes: choose some to set them off" });
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
    return [["image", "x", "y", "class"], ...x.map((_, i) => [names ? names[i] : i, x[i], y[i], labels ? classes[labels[i]] : ""])];
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
    canvas.addEventListener("pointerleave", () => this.show(-1));
    canvas.addEventListener("blur", () => this.show(-1));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;  // a wheel alone scrolls the page
      event.preventDefault();
      this.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (event.key === "Escape") this.show(-1);
      if (!way) return;
      event.preventDefault();
      this.show(this.towards(way));
    });
  }

  resize() {
    const width = this.canvas.parentElement.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    this.height = Math.round(Math.min(width, Math.max(320, innerHeight * 0.75)));
    this.ratio = Math.min(devicePixelRatio || 1, 2);
    this.canvas.width = width * this.ratio;
    this.canvas.height = this.height * this.ratio;
    this.canvas.style.height = `${this.height}px`;
    this.draw();
  }

  place(i) {
    const room = 16, high = this.height - 2 * room, wide = Math.min(this.width - 2 * room, 1.6 * high);
    const x = (this.width - wide) / 2 + this.data.x[i] * wide, y = room + this.data.y[i] * high;
    return [x * this.zoom + this.left, y * this.zoom + this.top];
  }

  zoomBy(factor, x = this.width / 2, y = this.height / 2) {
    const before = this.zoom;
    this.zoom = factor ? Math.min(40, Math.max(1, before * factor)) : 1;
    this.left = x - (x - this.left) * this.zoom / before;
    this.top = y - (y - this.top) * this.zoom / before;
    this.canvas.style.touchAction = this.zoom > 1 ? "none" : "pan-y";
    this.move();
  }

  // Keeps the map on the canvas, and draws it.
  move() {
    this.left = Math.min(0, Math.max(this.width * (1 - this.zoom), this.left));
    this.top = Math.min(0, Math.max(this.height * (1 - this.zoom), this.top));
    this.draw();
  }

  visible(i) { return !this.chosen.size || this.chosen.has(this.data.labels[i]); }

  nearest(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, least = 24 ** 2;
    for (let i = 0; i < this.n; i++) {
      if (!this.visible(i)) continue;
      const [px, py] = this.place(i), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  // The nearest point that lies in a direction; sideways distance counts double.
  towards([dx, dy]) {
    if (this.at < 0) return 0;
    const [x, y] = this.place(this.at);
    let best = this.at, least = Infinity;
    for (let i = 0; i < this.n; i++) {
      const [px, py] = this.place(i), along = (px - x) * dx + (py - y) * dy, aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (i === this.at || along <= 0.5 || !this.visible(i)) continue;
      if (along + 2 * aside < least) [best, least] = [i, along + 2 * aside];
    }
    return best;
  }

  thumbnail(i, size) {
    const { side, columns } = this.data, canvas = make("canvas", { width: side, height: side, style: `width:${size}px;height:${size}px` });
    if (this.ready) canvas.getContext("2d").drawImage(this.sheet, (i % columns) * side, Math.floor(i / columns) * side, side, side, 0, 0, side, side);
    return canvas;
  }

  show(i) {
    if (i === this.at) return;
    this.at = i;
    this.tip.hidden = i < 0;
    this.draw();
    if (i < 0) { this.told.textContent = ""; return; }
    const near = make("div", { class: "near" }, ...this.data.links[i].map((j) => this.thumbnail(j, 36)));
    this.tip.replaceChildren(this.thumbnail(i, 112), make("p", {}, make("strong", {}, this.name(i))), make("p", {}, "nearest features:"), near);
    this.told.textContent = `${this.name(i)}; its nearest: ${this.data.links[i].map((j) => this.name(j)).join("; ")}`;
    const [x, y] = this.place(i), w = this.tip.offsetWidth, h = this.tip.offsetHeight;
    this.tip.style.left = `${Math.max(0, x + 18 + w > this.width ? x - w - 18 : x + 18)}px`;
    this.tip.style.top = `${Math.max(0, Math.min(this.height - h, y - h / 2))}px`;
  }

  draw() {
    if (!this.width || this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }

  paint() {
    const pen = this.canvas.getContext("2d");
    this.colours ||= Object.fromEntries(["--text", "--faint", "--page", "--line", ...Array.from({ length: COLOURS }, (_, i) => `--c${i}`)].map((name) => [name, resolved(`var(${name})`)]));
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    if (this.pictures && this.ready) this.paintPictures(pen); else this.paintMarks(pen);
    if (this.data.labels && (this.chosen.size || this.data.classes.length <= SINGLE)) this.paintNames(pen);
    if (this.at >= 0) this.paintLinks(pen);
  }

  paintMarks(pen) {
    const room = Math.sqrt(this.width * this.height / this.n), { labels } = this.data;
    const size = Math.min(5, Math.max(2, 0.2 * room) * this.zoom ** 0.4);
    for (const chosen of [false, true]) {  // what is chosen lies above the rest
      for (let i = 0; i < this.n; i++) {
        if (this.visible(i) !== chosen) continue;
        const [x, y] = this.place(i), label = labels ? labels[i] : 0;
        pen.setTransform(this.ratio * size, 0, 0, this.ratio * size, x * this.ratio, y * this.ratio);
        pen.globalAlpha = chosen ? 0.85 : 0.5;
        pen.fillStyle = this.colours[chosen ? `--c${label % COLOURS}` : "--line"];
        pen.fill(this.shapes[(label + Math.floor(label / COLOURS)) % SHAPES.length]);
      }
    }
    pen.globalAlpha = 1;
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
  }

  // As many pictures as there is room for, each where its point lies.
  paintPictures(pen) {
    const { side, columns } = this.data, size = 28, taken = new Set();
    for (let i = 0; i < this.n; i++) {
      if (!this.visible(i)) continue;
      const [x, y] = this.place(i), column = Math.round(x / size), row = Math.round(y / size), cell = column + 4096 * row;
      if (taken.has(cell)) continue;
      taken.add(cell);
      pen.drawImage(this.sheet, (i % columns) * side, Math.floor(i / columns) * side, side, side, column * size - size / 2, row * size - size / 2, size - 1, size - 1);
    }
  }

  paintNames(pen) {
    const groups = new Map(), boxes = [];
    this.data.labels.forEach((label, i) => { if (this.visible(i)) (groups.get(label) || groups.set(label, []).get(label)).push(this.place(i)); });
    pen.font = "600 13px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    for (const [label, places] of [...groups].sort((a, b) => a[0] - b[0])) {
      const name = this.data.classes[label], w = pen.measureText(name).width / 2 + 4;
      const x = median(places.map((p) => p[0]));
      let y = median(places.map((p) => p[1]));
      while (boxes.some((b) => Math.abs(b.x - x) < b.w + w && Math.abs(b.y - y) < 17)) y += 4;
      boxes.push({ x, y, w });
      pen.strokeStyle = this.colours["--page"];
      pen.lineWidth = 5;
      pen.strokeText(name, x, y);
      pen.fillStyle = this.colours["--text"];
      pen.fillText(name, x, y);
    }
  }

  paintLinks(pen) {
    const [x, y] = this.place(this.at);
    pen.strokeStyle = this.colours["--text"];
    pen.lineWidth = 1;
    pen.beginPath();
    for (const j of this.data.links[this.at]) { pen.moveTo(x, y); pen.lineTo(...this.place(j)); }
    pen.stroke();
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(x, y, 8, 0, 2 * Math.PI);
    pen.stroke();
  }
}

const MAPS = DATA.maps.map((data, i) => data && new FeatureMap(document.getElementById(`map-${i}`), data, DATA.runs[i].name));
