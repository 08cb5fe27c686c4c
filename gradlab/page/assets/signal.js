/** A row of layers, each with the gradient that arrives in it as a bar; read from the chain's data. */
class SignalFigure extends Figure {
  prepare() {
    const d = this.data;
    this.w = unpack(d.w);
    this.log10 = unpack(d.log10);
    this.depth = Math.min(50, d.layer.at(-1));
    this.plot = new Plot(this.root.querySelector(".place svg"), {
      height: 250, yLabel: "gradient; in the last layer it is 1",
      xTicks: (v) => short(this.depth - v), yTicks: short,
    });
    this.plots = [this.plot];
    this.row = element("g", { class: "row" }, this.plot.front);
    this.bars = element("g", { class: "bars" }, this.plot.front);
    this.shown = this.depth;
    this.root.querySelector("[data-play]").addEventListener("click", () => this.play());
  }

  state() { return { w: String(Number(this.w[this.slider("w").value].toPrecision(12))) }; }
  restore() {
    const w = this.asked("w", this.w[0], this.w.at(-1));
    if (w !== null) this.slider("w").value = nearest(this.w, w);
  }
  press(button) {
    this.slider("w").value = nearest(this.w, Number(button.dataset.step));
    this.changed();
  }

  /** Let the signal go from the loss back to the first layer, one layer after another. */
  play() {
    clearInterval(this.timer);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    this.shown = 0;
    this.timer = setInterval(() => {
      this.shown += 1;
      this.draw();
      if (this.shown >= this.depth) clearInterval(this.timer);
    }, 40);
  }

  frame() {
    const { plot, depth } = this, foot = plot.inner.top + plot.h + 33, middle = plot.inner.left + plot.w / 2;
    plot.xLabel = plot.w < 480 ? "to the loss" : "layers to the loss";
    plot.x = [-0.7, depth + 0.7];
    plot.y = [-0.3, 2];
    plot.drawAxes();
    this.row.replaceChildren();
    const y = plot.py(-0.15), radius = Math.min(5, (0.32 * plot.w) / (depth + 1.4));
    element("line", { x1: plot.px(0), x2: plot.px(depth), y1: y, y2: y }, this.row);
    this.layers = Array.from({ length: depth + 1 }, (_, steps) =>
      element("circle", { cx: plot.px(depth - steps), cy: y, r: radius }, this.row));
    const said = plot.w < 480 ? "\u2190 J = w" : "\u2190 on its way back each layer multiplies it by J = w";
    for (const [x, anchor, text, look] of [[plot.inner.left, "start", "first layer", "label"], [middle, "middle", said, "jac"]])
      element("text", { x, y: foot, "text-anchor": anchor, class: look }, plot.back).textContent = text;
  }

  draw() {
    const { plot, data } = this, i = Number(this.slider("w").value), w = this.w[i];
    const size = data.layer.length, line = row(this.log10, size, i);
    const back = (steps) => (steps === 0 ? 0 : line[data.layer.indexOf(steps)]);
    const first = back(this.depth);
    const regime = Math.abs(first) < 1e-6 ? "edge" : first < 0 ? "vanishing" : "exploding";
    this.root.dataset.regime = regime;
    this.bars.replaceChildren();
    const wide = Math.max(2, (plot.w / (this.depth + 1.4)) * 0.72), foot = plot.py(0);
    for (let steps = 0; steps <= this.shown; steps++) {
      const value = 10 ** back(steps), x = plot.px(this.depth - steps), top = plot.py(Math.min(value, 2.1));
      element("rect", { x: x - wide / 2, y: Math.min(top, foot - 1), width: wide, height: Math.max(1, foot - top) }, this.bars);
    }
    this.layers.forEach((layer, steps) => layer.classList.toggle("reached", steps <= this.shown));
    this.out.meaning.textContent = {
      vanishing: "the first layers hardly learn", edge: "what is sent arrives",
      exploding: "the first layers are thrown about",
    }[regime];
    this.out.first.textContent = power(first, 3);
    this.out.regime.textContent = REGIMES[regime];
    const name = `w = ${fixed(w, 3)}`;
    this.tell({ w: name }, `${name}: ${power(first, 2)} of the gradient arrives ${this.depth} layers back, ${REGIMES[regime]}`);
    this.slider("w").setAttribute("aria-valuetext", `${name}, ${REGIMES[regime]}`);
    plot.svg.setAttribute("aria-label", `The gradient in each of ${this.depth} layers, ${name}: ${REGIMES[regime]}.`);
  }
}

KINDS.signal = SignalFigure;
