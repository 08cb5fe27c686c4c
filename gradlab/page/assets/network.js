/** The looks of the two kinds of network: of a plain one, and of one with the identity. */
const ROLES = ["is-plain", "is-residual"];

class NetworkFigure extends Figure {
  prepare() {
    const d = this.data;
    this.sigma = unpack(d.sigma_w);
    this.chi = unpack(d.chi_1);
    for (const name of ["median", "low", "high", "predicted"]) this[name] = unpack(d[name]);
    this.size = d.back.length;
    this.plot = new Plot(this.root.querySelector(".place svg"), {
      height: 420, xLabel: "layers back from the last", yLabel: "gradient over the last layer's, log axis",
    });
    this.plots = [this.plot];
    const { front } = this.plot;
    this.drawn = d.kinds.map((kind, k) => ({
      band: element("path", { class: `band ${ROLES[k]}` }, front),
      line: element("path", { class: `measured ${ROLES[k]}`, "data-line": kind }, front),
      name: element("text", { class: `name ${ROLES[k]}`, "text-anchor": "end" }, front),
    }));
    this.theory = element("path", { class: "theory" }, front);
    this.cursor = element("path", { class: "cursor" }, front);
    this.here = d.kinds.map((_, k) => element("circle", { class: `here ${ROLES[k]}`, r: 5 }, front));
    this.follow(this.plot, "back", (at) => nearest(d.back, at.x));
  }

  state() {
    return {
      activation: this.chosen("activation"),
      scales: this.chosen("scales"),
      sigma_w: String(Number(this.sigma[this.slider("sigma_w").value].toPrecision(12))),
      back: String(this.data.back[this.slider("back").value]),
    };
  }
  restore() {
    const given = address.read();
    for (const key of ["activation", "scales"]) if (given.has(key)) this.choose(key, given.get(key));
    const sigma = this.asked("sigma_w", this.sigma[0], this.sigma.at(-1));
    if (sigma !== null) this.slider("sigma_w").value = nearest(this.sigma, sigma);
    const back = this.asked("back", this.data.back[0], this.data.back.at(-1));
    if (back !== null) this.slider("back").value = nearest(this.data.back, back);
  }

  changed() {
    if (this.chosen("scales") === "this" || this.framed !== this.chosen("activation")) this.frame();
    super.changed();
  }

  /** The range over all sigma_w, so that what it does can be seen, or of one, to see the band. */
  frame() {
    const { plot, data } = this, one = this.chosen("scales") === "this";
    this.framed = one ? null : this.chosen("activation");
    const size = this.low.length / data.activations.length, num = this.sigma.length;
    const activation = data.activations.indexOf(this.chosen("activation"));
    const all = (values) => row(values, size, activation);
    const here = (values) => data.kinds.flatMap((_, k) =>
      [...row(values, this.size, (activation * data.kinds.length + k) * num + Number(this.slider("sigma_w").value))]);
    const part = one ? here : all;
    const finite = [...part(this.low), ...part(this.high)].filter(Number.isFinite);
    const low = finite.reduce((a, b) => Math.min(a, b), 0);
    const high = finite.reduce((a, b) => Math.max(a, b), 0);
    plot.x = [0, data.back.at(-1)];
    const margin = one ? 0.2 : 1;
    plot.y = [low - margin, high + margin];
    plot.drawAxes();
  }

  draw() {
    const { plot, data } = this;
    const a = data.activations.indexOf(this.chosen("activation"));
    const s = Number(this.slider("sigma_w").value), j = Number(this.slider("back").value);
    const num = this.sigma.length, chi = this.chi[a * num + s], sigma = this.sigma[s];
    const regime = !(Math.abs(Math.log10(chi)) >= 0.01) ? "edge" : chi < 1 ? "vanishing" : "exploding";
    this.root.dataset.regime = regime;
    const right = plot.inner.left + plot.w - 6, ends = [];
    const told = [];
    data.kinds.forEach((kind, k) => {
      const at = (a * data.kinds.length + k) * num + s;
      const [median, low, high] = ["median", "low", "high"].map((n) => row(this[n], this.size, at));
      const drawn = this.drawn[k];
      drawn.line.setAttribute("d", plot.line(data.back, median));
      drawn.band.setAttribute("d", plot.band(data.back, low, high));
      let y = plot.py(median[this.size - 1]);
      y = Math.max(plot.inner.top + 16, Math.min(plot.inner.top + plot.h - 8, y - 8));
      ends.push({ text: drawn.name, y, kind });
      this.here[k].setAttribute("cx", plot.px(data.back[j]));
      this.here[k].setAttribute("cy", plot.py(median[j]));
      this.out[`median-${k}`].textContent = fixed(median[j], 2);
      this.out[`low-${k}`].textContent = fixed(low[j], 2);
      this.out[`high-${k}`].textContent = fixed(high[j], 2);
      told.push(`${kind} 10 to the ${fixed(median[j], 2)}`);
    });
    ends.sort((one, other) => one.y - other.y);
    ends.forEach((end, k) => {
      if (k && end.y - ends[k - 1].y < 16) end.y = ends[k - 1].y + 16;
      end.text.setAttribute("x", right);
      end.text.setAttribute("y", end.y);
      end.text.textContent = end.kind;
    });
    this.theory.setAttribute("d", plot.line(data.back, row(this.predicted, this.size, a * num + s)));
    const x = plot.px(data.back[j]);
    this.cursor.setAttribute("d", `M${x} ${plot.inner.top}V${plot.inner.top + plot.h}`);
    this.out.chi.textContent = fixed(chi, 4);
    this.out.regime.textContent = REGIMES[regime];
    const name = `sigma_w = ${fixed(sigma, 2)}`;
    this.tell({ sigma_w: `\u03c3 = ${fixed(sigma, 2)}`, back: `= ${data.back[j]}` },
      `${data.activations[a]}, ${name}, ${data.back[j]} layers back: ${told.join(", ")}; the ${data.kinds[0]} network is ${REGIMES[regime]}`);
    this.slider("sigma_w").setAttribute("aria-valuetext", `${name}, ${REGIMES[regime]}`);
    this.slider("back").setAttribute("aria-valuetext", `${data.back[j]} layers back`);
    plot.svg.setAttribute("aria-label",
      `Gradient norm against layers back, log axis, ${data.activations[a]}, ${name}: ${data.kinds[0]} is ${REGIMES[regime]}.`);
  }
}

KINDS.network = NetworkFigure;
