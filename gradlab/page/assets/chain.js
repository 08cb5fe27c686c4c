class ChainFigure extends Figure {
  prepare() {
    const d = this.data;
    this.w = unpack(d.w);
    this.log10 = unpack(d.log10);
    this.limits = d.formats.length
      ? Object.fromEntries(["zero", "infinite", "wrong"].map((k) => [k, unpack(d[k])])) : {};
    this.size = d.layer.length;
    this.plot = new Plot(this.root.querySelector(".place svg"), {
      height: 420, xLabel: "depth L, in layers", yLabel: "size of the derivative, log axis",
    });
    this.plots = [this.plot];
    const { front } = this.plot;
    this.ghosts = element("path", { class: "ghost" }, front);
    this.edges = element("g", { class: "formats" }, front);
    this.line = element("path", { class: "measured", "data-line": "" }, front);
    this.points = element("path", { class: "dots" }, front);
    this.theory = element("path", { class: "theory" }, front);
    this.cursor = element("path", { class: "cursor" }, front);
    this.marks = element("g", { class: "marks" }, front);
    this.here = element("circle", { class: "here", r: 6 }, front);
    this.follow(this.plot, "L", (at) => nearest(this.visible(), at.x), (at) => this.grip(at));
  }

  /** The line itself: it goes through the pointer that holds it. */
  grip({ px, py }) {
    const { plot } = this, slope = Math.log10(this.w[this.slider("w").value]);
    const [x0, y0, x1, y1] = [plot.px(0), plot.py(0), plot.px(this.framed), plot.py(this.framed * slope)];
    const off = Math.abs((x1 - x0) * (py - y0) - (y1 - y0) * (px - x0)) / Math.hypot(x1 - x0, y1 - y0);
    if (off > REACH || px < x0) return null;
    return (at) => {
      this.slider("L").value = nearest(this.visible(), at.x);
      const depth = this.data.layer[this.slider("L").value];
      this.slider("w").value = nearest(this.w, 10 ** (at.y / depth));
    };
  }

  visible() { return this.data.layer.filter((depth) => depth <= this.view()); }
  view() { return Number(this.chosen("view")); }

  state() {
    return {
      w: String(Number(this.w[this.slider("w").value].toPrecision(12))),
      L: String(this.data.layer[this.slider("L").value]),
      view: String(this.view()),
      range: this.chosen("range"),
    };
  }
  restore() {
    const given = address.read();
    if (given.has("view")) this.choose("view", given.get("view"));
    if (given.has("range")) this.choose("range", given.get("range"));
    const w = this.asked("w", this.w[0], this.w.at(-1));
    if (w !== null) this.slider("w").value = nearest(this.w, w);
    const depth = this.asked("L", this.data.layer[0], this.data.layer.at(-1));
    if (depth !== null) {
      const view = this.data.views.find((v) => v >= depth);
      if (!given.has("view") && view) this.choose("view", String(view));
      this.slider("L").max = this.visible().length - 1;
      this.slider("L").value = nearest(this.data.layer, depth);
    }
  }

  press(button) {
    this.slider("w").value = nearest(this.w, Number(button.dataset.step));
    this.changed();
  }

  changed() {
    if (this.framed !== this.view()) this.follows();
    if (this.framed !== this.view() || this.ranged !== this.chosen("range")) this.frame();
    super.changed();
  }

  /** Another range of depths is shown: the depth that is looked at keeps its part of it. */
  follows() {
    const { layer } = this.data, part = layer[this.slider("L").value] / this.framed;
    this.slider("L").max = layer.indexOf(this.view());
    this.slider("L").value = nearest(layer, part * this.view());
  }

  /** What depends on the range of depths and of sizes alone. */
  frame() {
    const { plot, data } = this, view = this.framed = this.view();
    const last = data.layer.indexOf(view);
    const all = [...this.w.keys()].map((i) => this.log10[i * this.size + last]);
    const double = data.edges.at(-1);
    const wide = (this.ranged = this.chosen("range")) === "formats";
    const low = wide ? Math.max(Math.min(...all), double?.floor ?? -Infinity) : -10;
    const high = wide ? Math.min(Math.max(...all), double?.ceiling ?? Infinity) : 10;
    const margin = wide ? 0.05 * (high - low) : 0;
    plot.x = [0, view];
    plot.y = [low - margin, high + margin];
    plot.drawAxes();
    this.slider("L").max = last;
    this.ghosts.setAttribute("d", [...this.w.keys()].filter((i) => i % 20 === 0)
      .map((i) => plot.line([0, ...data.layer], [0, ...row(this.log10, this.size, i)])).join(""));
    this.edges.replaceChildren();
    const foot = plot.inner.top + plot.h;
    for (const [y, text] of [[plot.inner.top + 14, "rocket: the gradient diverges \u2191"], [foot - 6, "floor: nothing is left to learn from \u2193"]])
      element("text", { x: plot.inner.left + 8, y, class: "region" }, this.edges).textContent = text;
    const taken = [];
    for (const { format, floor, ceiling } of wide ? data.edges : []) {
      for (const edge of [floor, ceiling]) {
        if (edge === null) continue;
        const y = plot.py(edge);
        if (y < plot.inner.top || y > plot.inner.top + plot.h) continue;
        const same = taken.find((t) => Math.abs(t.y - y) < 12 && t.below === edge < 0);
        if (same) { same.text.textContent = `${format}, ${same.text.textContent}`; continue; }
        element("line", { x1: plot.inner.left, x2: plot.inner.left + plot.w, y1: y, y2: y }, this.edges);
        const text = element("text", { x: plot.inner.left + plot.w - 4, y: y + (edge < 0 && y < plot.inner.top + plot.h - 14 ? 12 : -4), "text-anchor": "end" }, this.edges);
        text.textContent = `${edge < 0 ? "0" : "\u221e"} in ${format}`;
        taken.push({ y, text, below: edge < 0 });
      }
    }
    for (const { text } of taken)
      text.textContent = text.textContent.replace(/^(.*), ([0\u221e]) in (.*)$/, "$2 in $1, $3");
  }

  draw() {
    const { plot, data } = this;
    const i = Number(this.slider("w").value), j = Number(this.slider("L").value);
    const w = this.w[i], depth = data.layer[j];
    const line = row(this.log10, this.size, i), value = line[j], deepest = line[this.size - 1];
    const regime = Math.abs(deepest) < 1e-6 ? "edge" : deepest < 0 ? "vanishing" : "exploding";
    this.root.dataset.regime = regime;
    const xs = [0, ...data.layer], ys = [0, ...line];
    this.line.setAttribute("d", plot.line(xs, ys));
    this.points.setAttribute("d", plot.dots(data.layer, line));
    this.theory.setAttribute("d", plot.line([0, this.framed], [0, this.framed * Math.log10(w)]));
    this.drawMarks(i, w);
    const x = plot.px(depth), y = plot.py(value);
    this.cursor.setAttribute("d", `M${x} ${plot.inner.top}V${plot.inner.top + plot.h}`);
    this.here.setAttribute("cx", x);
    this.here.setAttribute("cy", y);
    this.out.magnitude.textContent = power(value, 4);
    this.out.log10.textContent = fixed(value, 4);
    this.out.regime.textContent = REGIMES[regime];
    this.fillTable(i);
    const name = `w = ${fixed(w, 3)}`;
    this.tell({ w: `w = ${fixed(w, 3)}`, L: `L = ${grouped(depth)}` },
      `${name}, depth ${depth}: magnitude ${power(value, 2)}, ${REGIMES[regime]}`);
    this.slider("w").setAttribute("aria-valuetext", `${name}, ${REGIMES[regime]}`);
    plot.svg.setAttribute("aria-label",
      `Magnitude of the derivative against depth, log axis, ${name}: ${REGIMES[regime]}.`);
  }

  /** The depths at which each format fails, on the line; formats that fail together share a mark. */
  drawMarks(i, w) {
    const { plot, data } = this, count = this.w.length;
    this.marks.replaceChildren();
    const groups = [];
    if (this.ranged === "formats") data.formats.forEach((format, f) => {
      for (const kind of ["zero", "infinite", "wrong"]) {
        const depth = this.limits[kind][f * count + i];
        if (!(depth <= this.framed)) continue;
        const x = plot.px(depth);
        const near = groups.find((g) => g.kind === kind && Math.abs(g.x - x) < 8);
        if (near) near.formats.push(format);
        else groups.push({ kind, depth, x, formats: [format] });
      }
    });
    const right = plot.inner.left + plot.w, labels = [];
    groups.sort((one, other) => (one.kind === "wrong") - (other.kind === "wrong"));
    for (const { kind, depth, x, formats } of groups) {
      const y = plot.py(depth * Math.log10(w));
      if (y < plot.inner.top + 4 || y > plot.inner.top + plot.h - 4) continue;
      const shape = kind === "wrong" ? `M${x - 3.5} ${y}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0`
        : `M${x - 5} ${y - 5}L${x + 5} ${y + 5}M${x - 5} ${y + 5}L${x + 5} ${y - 5}`;
      element("path", { d: shape, class: kind }, this.marks);
      const side = x > right - 170 ? -1 : 1, wrong = kind === "wrong", below = (w < 1) === wrong;
      const what = { zero: "0", infinite: "\u221e", wrong: "1 % off" }[kind];
      const said = `${formats.join(", ")}: ${what} at ${grouped(depth)}`;
      // Where there is no room for two labels the second is left to the table below.
      const at = { x: x + (wrong ? 0 : 10) * side, y: y + (below ? 20 : -12) };
      const [from, to] = [at.x, at.x + 6.6 * said.length * side].sort((p, q) => p - q);
      if (labels.some((l) => from < l.to + 8 && to > l.from - 8 && Math.abs(at.y - l.y) < 15)) continue;
      labels.push({ from, to, y: at.y });
      element("text", { ...at, class: kind, "text-anchor": side > 0 ? "start" : "end" }, this.marks)
        .textContent = said;
    }
  }

  fillTable(i) {
    const count = this.w.length;
    this.data.formats.forEach((format, f) => {
      for (const kind of ["zero", "infinite", "wrong"]) {
        const depth = this.limits[kind][f * count + i];
        this.out[`${kind}-${f}`].textContent = Number.isFinite(depth) ? grouped(depth)
          : Number.isNaN(depth) ? "not computed" : "never";
      }
    });
  }
}

KINDS.chain = ChainFigure;
