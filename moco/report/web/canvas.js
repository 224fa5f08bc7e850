// The map of a run's features, painted: a canvas of marks or pictures, names, and what is chosen.
const SINGLE = 24; // up to so many classes are named on the map itself
const SIDE = 28; // of a picture in the place of marks

// What a CSS colour is at the moment, for the canvas.
function resolved(colour) {
  const probe = document.body.appendChild(make("span", { style: `color:${colour}` }));
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// Of some points the one with the most of them around it: where the class's name stands.
function densest({ x, y }, points) {
  const some = points.filter((_, i) => i % Math.ceil(points.length / 300) === 0),
    reach = 0.06 ** 2;
  const near = (i) => some.filter((j) => (x[i] - x[j]) ** 2 + (y[i] - y[j]) ** 2 < reach).length;
  let best = some[0],
    most = 0;
  for (const i of some) {
    const count = near(i);
    if (count > most) [best, most] = [i, count];
  }
  return best;
}

class MapCanvas {
  constructor(data) {
    Object.assign(this, {
      data,
      n: data.x.length,
      chosen: new Set(),
      at: -1,
      pictures: false,
      zoom: 1,
      left: 0,
      top: 0,
    });
    this.canvas = make("canvas", { class: "points", tabindex: 0, role: "img" });
    this.shapes = SHAPES.map((shape) => new Path2D(shape));
    this.sheet = new Image();
    this.sheet.src = data.sheet;
    this.sheet.decode().then(() => {
      this.ready = true;
      this.draw();
    });
    addEventListener("theme", () => {
      this.colours = null;
      this.draw();
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
    const room = 16,
      high = this.height - 2 * room,
      wide = Math.min(this.width - 2 * room, 1.6 * high);
    const x = (this.width - wide) / 2 + this.data.x[i] * wide,
      y = room + this.data.y[i] * high;
    return [x * this.zoom + this.left, y * this.zoom + this.top];
  }

  visible(i) {
    return !this.chosen.size || this.chosen.has(this.data.labels[i]);
  }

  draw() {
    if (!this.width || this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
    });
  }

  paint() {
    const pen = this.canvas.getContext("2d");
    this.colours ||= Object.fromEntries(
      ["--text", "--faint", "--page", "--line", ...Array.from({ length: COLOURS }, (_, i) => `--c${i}`)].map((name) => [
        name,
        resolved(`var(${name})`),
      ]),
    );
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    if (this.pictures && this.ready) this.paintPictures(pen);
    else this.paintMarks(pen);
    if (this.data.labels && (this.chosen.size || this.data.classes.length <= SINGLE)) this.paintNames(pen);
    if (this.at >= 0) this.paintLinks(pen);
  }

  paintMarks(pen) {
    const room = Math.sqrt((this.width * this.height) / this.n),
      { labels } = this.data;
    const size = Math.min(5, Math.max(2, 0.2 * room) * this.zoom ** 0.4);
    for (const chosen of [false, true]) {
      // what is chosen lies above the rest
      for (let i = 0; i < this.n; i++) {
        if (this.visible(i) !== chosen) continue;
        const [x, y] = this.place(i),
          label = labels ? labels[i] : 0;
        pen.setTransform(this.ratio * size, 0, 0, this.ratio * size, x * this.ratio, y * this.ratio);
        pen.globalAlpha = chosen ? 0.85 : 0.5;
        pen.fillStyle = this.colours[chosen ? `--c${label % COLOURS}` : "--line"];
        pen.fill(this.shapes[(label + Math.floor(label / COLOURS)) % SHAPES.length]);
      }
    }
    pen.globalAlpha = 1;
    pen.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
  }

  // Which square of the canvas a place is in, when pictures are shown.
  cell(x, y) {
    return `${Math.round(x / SIDE)},${Math.round(y / SIDE)}`;
  }

  // As many pictures as there is room for, each where its point lies.
  paintPictures(pen) {
    const { side, columns } = this.data;
    this.pictured = new Map();
    for (let i = 0; i < this.n; i++) {
      const [x, y] = this.place(i),
        cell = this.cell(x, y);
      if (!this.visible(i) || this.pictured.has(cell)) continue;
      this.pictured.set(cell, i);
      const [left, top] = [x, y].map((v) => (Math.round(v / SIDE) - 0.5) * SIDE);
      const from = [(i % columns) * side, Math.floor(i / columns) * side, side, side];
      pen.drawImage(this.sheet, ...from, left, top, SIDE - 1, SIDE - 1);
    }
  }

  findCentres() {
    const groups = new Map();
    this.data.labels.forEach((label, i) => (groups.get(label) || groups.set(label, []).get(label)).push(i));
    return [...groups].sort((a, b) => a[0] - b[0]).map(([label, points]) => [label, densest(this.data, points)]);
  }

  paintNames(pen) {
    const boxes = [];
    this.centres ||= this.findCentres();
    pen.font = "600 13px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    for (const [label, centre] of this.centres) {
      if (!this.visible(centre)) continue;
      const name = this.data.classes[label],
        w = pen.measureText(name).width / 2 + 4,
        [x, top] = this.place(centre);
      let y = top;
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
    for (const j of this.data.links[this.at]) {
      pen.moveTo(x, y);
      pen.lineTo(...this.place(j));
    }
    pen.stroke();
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(x, y, 8, 0, 2 * Math.PI);
    pen.stroke();
  }
}
