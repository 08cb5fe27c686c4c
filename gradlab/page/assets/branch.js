/** One number a layer: w alone, beside the identity, and divided by the depth, over w. */
class BranchFigure extends Figure {
  prepare() {
    const d = this.data;
    this.w = unpack(d.w);
    for (const name of BRANCHES) this[name] = unpack(d[name]);
    this.size = this.w.length;
    this.plot = new Plot(this.root.querySelector(".place svg"), {
      height: 420, xLabel: "weight w of the branch", yLabel: "what is left through L layers, log axis",
      xTicks: (v) => short(v),
    });
    this.plots = [this.plot];
    const { front, over } = this.plot;
    this.cursor = element("path", { class: "cursor" }, front);
    this.lines = BRANCHES.map((name) => element("path", { class: `measured is-${name}`, "data-line": name }, front));
    this.here = BRANCHES.map((name) => element("circle", { class: `here is-${name}`, r: 5 }, front));
    this.words = element("g", {}, over);
    this.follow(this.plot, "branch", (at) => nearest(this.w, at.x));
  }

  state() {
    return {
      branch: short(this.w[this.slider("branch").value]).replace(MINUS, "-"),
      layers: this.chosen("layers"),
    };
  }
  restore() {
    const given = address.read();
    if (given.has("layers")) this.choose("layers", given.get("layers"));
    const w = this.asked("branch", this.w[0], this.w.at(-1));
    if (w !== null) this.slider("branch").value = nearest(this.w, w);
  }
  press(button) {
    this.slider("branch").value = nearest(this.w, Number(button.dataset.step));
    this.changed();
  }

  /** One range for all depths, so that a deeper chain is seen to be steeper. */
  frame() {
    const { plot } = this;
    const most = Math.max(...[this.plain, this.residual].map((all) => Math.max(...all)));
    plot.x = [this.w[0], this.w.at(-1)];
    plot.y = [-most, most];
    plot.drawAxes();
    const foot = plot.inner.top + plot.h - 8;
    this.words.replaceChildren();
    const lift = plot.w < 480 ? 16 : 0; // one above the other where there is no room side by side
    for (const [name, zero, up] of [["plain", 0, 0], ["residual", -1, lift]])
      element("text", { x: plot.px(zero), y: foot - up, class: `name is-${name}`, "text-anchor": "middle" }, this.words)
        .textContent = `${name}: 0 at ${short(zero)}`;
  }

  draw() {
    const { plot, data } = this, i = Number(this.slider("branch").value), w = this.w[i];
    const layers = Number(this.chosen("layers")), depth = data.depths.indexOf(layers);
    const found = BRANCHES.map((name) => row(this[name], this.size, depth));
    const [plain, residual, small] = found.map((values) => values[i]);
    const regime = Math.abs(residual) < 1e-6 ? "edge" : residual < 0 ? "vanishing" : "exploding";
    this.root.dataset.regime = regime;
    this.cursor.setAttribute("d", `M${plot.px(w)} ${plot.inner.top}V${plot.inner.top + plot.h}`);
    found.forEach((values, k) => {
      this.lines[k].setAttribute("d", plot.line(this.w, values));
      this.here[k].setAttribute("cx", plot.px(w));
      this.here[k].setAttribute("cy", plot.py(values[i]));
      this.out[BRANCHES[k]].textContent = power(values[i], 3);
    });
    this.out.regime.textContent = REGIMES[regime];
    const name = `w = ${fixed(w, 3)}`;
    this.tell({ branch: name },
      `${name}, ${layers} layers: plain ${power(plain, 2)}, residual ${power(residual, 2)}, small branch ${power(small, 2)}`);
    this.slider("branch").setAttribute("aria-valuetext", `${name}, the residual chain is ${REGIMES[regime]}`);
    plot.svg.setAttribute("aria-label",
      `What is left through ${layers} layers against w, log axis: a plain chain, a residual one, one with a small branch.`);
  }
}

const BRANCHES = ["plain", "residual", "small"];
KINDS.branch = BranchFigure;
