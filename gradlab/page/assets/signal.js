/** A row of layers, each with the gradient that arrives in it as a bar; read from the chain's data. */
class SignalFigure extends Figure {
  prepare() {
    const d = this.data;
    this.w = unpack(d.w);
    this.log10 = unpack(d.log10);
    this.depth = Math.min(50, d.layer.at(-1));
    this.plot = new Plot(this.root.querySelector(".place svg"), {
      height: 250, xLabel: "layer k: the loss is at the right", yLabel: "gradient; in the last layer it is 1",
      yTicks: short,
    });
    this.plots = [this.plot];
    this.bars = element("g", { class: "bars" }, this.plot.front);
    this.words = element("g", { class: "marks" }, this.plot.over);
    this.shown = this.depth;
    this.root.querySelector("[data-play]").addEventListener("click", () => this.play());
  }

  state() { return { w: String(Number(this.w[this.slider("w").value].toPrecision(12))) }; }
  restore() {
    const w = this.asked("w", this.w[0], this.w.at(-1));
    if (w !== null) this.slider("w").value = nearest(this.w, w);
  }
  press() {
    this.slider("w").value = nearest(this.w, 1);
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
    this.plot.x = [-0.7, this.depth + 0.7];
    this.plot.y = [0, 2];
    this.plot.drawAxes();
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
    this.words.replaceChildren();
    const told = { x: plot.inner.left + 8, y: plot.inner.top + 18 };
    element("text", told, this.words).textContent = {
      vanishing: "the first layers hardly learn",
      edge: "what is sent arrives",
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
