// Interactive figures: plain SVG and the browser's own controls, so that keyboard, touch and
// screen reader work without a line of code here. Data come from the page's JSON, never from a
// formula; formulas are drawn beside them, dashed.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const MINUS = "\u2212";

// ---- numbers ---------------------------------------------------------------------------------

/** The array that the page's JSON holds: a flat typed array, and its shape. */
function unpack(packed) {
  const text = atob(packed.base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  if (packed.kind === "<f8") return new Float64Array(bytes.buffer);
  const whole = new Int32Array(bytes.buffer);
  const outermost = 2 ** 31 - 1, unit = 10 ** packed.places;
  return Float64Array.from(whole, (v) =>
    v < -outermost ? NaN : Math.abs(v) === outermost ? Math.sign(v) * Infinity : v / unit);
}

/** One row along the last axis. */
const row = (flat, size, index) => flat.subarray(index * size, (index + 1) * size);

function fixed(value, decimals) {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return (value < 0 ? MINUS : "") + "\u221e";
  return value.toFixed(decimals).replace("-", MINUS);
}

/** 10^log10 as [mantissa, exponent]: the number itself may be too large for any float. */
function scientific(log10, decimals) {
  let exponent = Math.floor(log10);
  let mantissa = (10 ** (log10 - exponent)).toFixed(decimals);
  if (mantissa.startsWith("10")) [mantissa, exponent] = [(1).toFixed(decimals), exponent + 1];
  return [mantissa, exponent];
}

/** The same as text, a plain number where that is short. */
function power(log10, decimals) {
  if (log10 === -Infinity) return "0";
  if (!Number.isFinite(log10)) return fixed(log10, 0);
  const [mantissa, exponent] = scientific(log10, decimals);
  return `${mantissa} \u00d7 10${superscript(exponent)}`;
}

const superscript = (whole) =>
  String(whole).replace(/[-0-9]/g, (c) => "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b"["0123456789-".indexOf(c)]);

const grouped = (whole) => String(whole).replace(/\B(?=(\d{3})+$)/g, "\u202f");

/** The index of the entry nearest to a value. */
function nearest(values, value) {
  let best = 0;
  values.forEach((v, i) => { if (Math.abs(v - value) < Math.abs(values[best] - value)) best = i; });
  return best;
}

/** A few round numbers within [low, high]. */
function ticks(low, high, count) {
  const raw = (high - low) / count, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9) + 1e-9 * step; i++) found.push(i * step);
  return found;
}

// ---- the address -----------------------------------------------------------------------------

const address = {
  read: () => new URLSearchParams(location.hash.slice(1)),
  /** Put values into the address; browsers refuse to do so hundreds of times a second. */
  write(values) {
    Object.assign(this.waiting, values);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      const all = this.read();
      for (const key of [...all.keys()]) if (all.get(key) === "") all.delete(key);
      for (const [key, value] of Object.entries(this.waiting)) all.set(key, value);
      this.waiting = {};
      history.replaceState(null, "", "#" + all);
    }, 150);
  },
  waiting: {},
  timer: 0,
};

// ---- one plot --------------------------------------------------------------------------------

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

let plots = 0;

/** Axes in an SVG that is as wide as its place, so that letters keep their size on a phone. */
class Plot {
  constructor(svg, { height, xLabel, yLabel, xTicks, yTicks }) {
    Object.assign(this, { svg, height, xLabel, yLabel });
    this.xTick = xTicks || grouped;
    this.yTick = yTicks || ((v) => (v === 0 ? "1" : `10^${fixed(v, 0)}`));
    this.x = [0, 1];
    this.y = [0, 1];
    this.back = element("g", { class: "axes" }, svg);
    const clip = element("clipPath", { id: `clip-${++plots}` }, svg);
    this.window = element("rect", {}, clip);
    this.front = element("g", { "clip-path": `url(#clip-${plots})` }, svg);
    this.over = element("g", {}, svg);
    this.measure();
  }

  measure() {
    this.width = Math.max(280, Math.round(this.svg.parentElement.clientWidth));
    const narrow = this.width < 520;
    this.tall = narrow ? Math.round(this.height * 0.82) : this.height;
    this.inner = { left: narrow ? 46 : 56, right: 12, top: 14, bottom: 40 };
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.tall}`);
    this.svg.style.height = `${this.tall}px`;
    const w = this.width - this.inner.left - this.inner.right;
    const h = this.tall - this.inner.top - this.inner.bottom;
    Object.entries({ x: this.inner.left, y: this.inner.top, width: w, height: h })
      .forEach(([key, value]) => this.window.setAttribute(key, value));
    this.w = w;
    this.h = h;
  }

  px(x) { return this.inner.left + ((x - this.x[0]) / (this.x[1] - this.x[0])) * this.w; }
  py(y) {
    const at = this.inner.top + ((this.y[1] - y) / (this.y[1] - this.y[0])) * this.h;
    return Math.max(-1e4, Math.min(1e4, at));
  }
  /** The x under a pointer. */
  xAt(event) {
    const box = this.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * this.width - this.inner.left;
    return this.x[0] + (at / this.w) * (this.x[1] - this.x[0]);
  }

  drawAxes() {
    this.back.replaceChildren();
    const { left, top } = this.inner, bottom = top + this.h, g = this.back;
    const text = (x, y, string, attributes) => {
      const [base, raised] = string.split("^"), made = element("text", { x, y, ...attributes }, g);
      made.textContent = base;
      if (raised) element("tspan", { dy: -5, "font-size": 10 }, made).textContent = raised;
    };
    for (const v of ticks(...this.y, this.h / 46)) {
      const y = this.py(v);
      element("line", { x1: left, x2: left + this.w, y1: y, y2: y, class: v === 0 ? "edge" : "grid" }, g);
      text(left - 6, y + 4, this.yTick(v), { class: "tick", "text-anchor": "end" });
    }
    for (const v of ticks(...this.x, this.w / 74)) {
      const x = this.px(v);
      element("line", { x1: x, x2: x, y1: bottom, y2: bottom + 4, class: "axis" }, g);
      const last = x > left + this.w - 12;
      text(last ? left + this.w + 8 : x, bottom + 17, this.xTick(v), { class: "tick", "text-anchor": last ? "end" : "middle" });
    }
    element("line", { x1: left, x2: left + this.w, y1: bottom, y2: bottom, class: "axis" }, g);
    text(left + this.w, bottom + 33, this.xLabel, { class: "label", "text-anchor": "end" });
    text(left, 9, this.yLabel, { class: "label" });
  }

  /** The `d` of a line through points; infinite ones are far outside, nan ones break it. */
  line(xs, ys) {
    let d = "", pen = "M";
    for (let i = 0; i < ys.length; i++) {
      if (Number.isNaN(ys[i])) { pen = "M"; continue; }
      d += `${pen}${this.px(xs[i]).toFixed(2)} ${this.py(ys[i]).toFixed(2)}`;
      pen = "L";
    }
    return d;
  }
  /** The `d` of one dot at each point that lies in the window. */
  dots(xs, ys) {
    let d = "";
    for (let i = 0; i < ys.length; i++) {
      if (xs[i] >= this.x[0] && xs[i] <= this.x[1] && ys[i] >= this.y[0] && ys[i] <= this.y[1])
        d += `M${this.px(xs[i]).toFixed(2)} ${this.py(ys[i]).toFixed(2)}h0`;
    }
    return d;
  }
  /** The `d` of the area between two lines. */
  band(xs, low, high) {
    const there = [...xs.keys()].filter((i) => !Number.isNaN(low[i]) && !Number.isNaN(high[i]));
    const at = (ys) => (i) => `${this.px(xs[i]).toFixed(2)} ${this.py(ys[i]).toFixed(2)}`;
    if (!there.length) return "";
    return "M" + there.map(at(low)).join("L") + "L" + there.reverse().map(at(high)).join("L") + "Z";
  }
}

// ---- one figure ------------------------------------------------------------------------------

/** What all figures share: controls by name, read-outs by name, the address, one redraw. */
class Figure {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.out = Object.fromEntries(
      [...root.querySelectorAll("[data-out]")].map((e) => [e.dataset.out, e]));
    this.spoken = root.querySelector("[data-spoken]");
    this.prepare();
    this.restore();
    root.addEventListener("input", () => this.changed());
    root.addEventListener("change", () => this.changed());
    this.root.querySelectorAll("[data-step]").forEach((button) =>
      button.addEventListener("click", () => this.press(button)));
    new ResizeObserver(() => {
      const before = this.plots[0].width;
      this.plots.forEach((plot) => plot.measure());
      if (this.plots[0].width !== before) { this.frame(); this.draw(); }
    }).observe(root);
    this.frame();
    this.draw();
  }

  slider(name) { return this.root.querySelector(`input[type=range][name=${name}]`); }
  chosen(name) { return this.root.querySelector(`input[type=radio][name=${name}]:checked`)?.value; }
  choose(name, value) {
    const radio = [...this.root.querySelectorAll(`input[type=radio][name=${name}]`)]
      .find((r) => r.value === value);
    if (radio) radio.checked = true;
  }

  changed() {
    this.draw();
    address.write(this.state());
  }

  /** Speak the outcome once the hand rests; say each slider's value in its own unit. */
  tell(values, sentence) {
    for (const [name, text] of Object.entries(values)) {
      this.slider(name).setAttribute("aria-valuetext", text);
      for (const shown of [this.out[name], this.out[`${name}-again`]])
        if (shown) shown.textContent = text.replace(/^.*?= /, "");
    }
    clearTimeout(this.speaking);
    this.speaking = setTimeout(() => { this.spoken.textContent = sentence; }, 500);
  }

  /** The line follows a pointer that is dragged over the plot, along the x axis. */
  follow(plot, name, index) {
    const move = (event) => {
      const slider = this.slider(name);
      slider.value = index(plot.xAt(event));
      this.changed();
    };
    plot.svg.addEventListener("pointerdown", (event) => {
      plot.svg.setPointerCapture(event.pointerId);
      move(event);
    });
    plot.svg.addEventListener("pointermove", (event) => { if (event.buttons) move(event); });
  }
}

const REGIMES = {
  vanishing: "vanishing", edge: "knife edge", exploding: "exploding",
};

class ChainFigure extends Figure {
  prepare() {
    const d = this.data;
    this.w = unpack(d.w);
    this.log10 = unpack(d.log10);
    this.limits = d.formats.length
      ? Object.fromEntries(["zero", "infinite", "wrong"].map((k) => [k, unpack(d[k])])) : {};
    this.size = d.layer.length;
    this.plot = new Plot(this.root.querySelector("svg"), {
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
    this.follow(this.plot, "L", (x) => nearest(this.visible(), x));
  }

  visible() { return this.data.layer.filter((depth) => depth <= this.view()); }
  view() { return Number(this.chosen("view")); }

  state() {
    return {
      w: String(Number(this.w[this.slider("w").value].toPrecision(12))),
      L: String(this.data.layer[this.slider("L").value]),
      view: String(this.view()),
    };
  }
  restore() {
    const given = address.read();
    if (given.has("view")) this.choose("view", given.get("view"));
    if (given.has("w")) this.slider("w").value = nearest(this.w, Number(given.get("w")));
    if (given.has("L")) {
      const depth = Number(given.get("L"));
      const view = this.data.views.find((v) => v >= depth);
      if (!given.has("view") && view) this.choose("view", String(view));
      this.slider("L").max = this.visible().length - 1;
      this.slider("L").value = nearest(this.data.layer, depth);
    }
  }

  changed() {
    if (this.framed !== this.view()) this.frame();
    super.changed();
  }

  /** What depends on the range of depths alone. */
  frame() {
    const { plot, data } = this, view = this.framed = this.view();
    const last = data.layer.indexOf(view);
    const all = [...this.w.keys()].map((i) => this.log10[i * this.size + last]);
    const double = data.edges.at(-1);
    const low = Math.max(Math.min(...all), double?.floor ?? -Infinity);
    const high = Math.min(Math.max(...all), double?.ceiling ?? Infinity);
    const margin = 0.05 * (high - low);
    plot.x = [0, view];
    plot.y = [low - margin, high + margin];
    plot.drawAxes();
    this.slider("L").max = last;
    this.ghosts.setAttribute("d", [...this.w.keys()].filter((i) => i % 20 === 0)
      .map((i) => plot.line([0, ...data.layer], [0, ...row(this.log10, this.size, i)])).join(""));
    this.edges.replaceChildren();
    const taken = [];
    for (const { format, floor, ceiling } of data.edges) {
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
    data.formats.forEach((format, f) => {
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

class NetworkFigure extends Figure {
  prepare() {
    const d = this.data;
    this.sigma = unpack(d.sigma_w);
    this.chi = unpack(d.chi_1);
    for (const name of ["median", "low", "high", "predicted"]) this[name] = unpack(d[name]);
    this.size = d.back.length;
    this.plot = new Plot(this.root.querySelector("svg"), {
      height: 420, xLabel: "layers back from the last", yLabel: "length of the gradient, over the last layer's, log axis",
    });
    this.plots = [this.plot];
    const { front } = this.plot;
    this.drawn = d.kinds.map((kind, k) => ({
      band: element("path", { class: `band kind-${k}` }, front),
      line: element("path", { class: `measured kind-${k}`, "data-line": kind }, front),
      name: element("text", { class: `name kind-${k}`, "text-anchor": "end" }, front),
    }));
    this.theory = element("path", { class: "theory" }, front);
    this.cursor = element("path", { class: "cursor" }, front);
    this.here = d.kinds.map((_, k) => element("circle", { class: `here kind-${k}`, r: 5 }, front));
    this.follow(this.plot, "back", (x) => nearest(d.back, x));
  }

  state() {
    return {
      activation: this.chosen("activation"),
      sigma_w: String(Number(this.sigma[this.slider("sigma_w").value].toPrecision(12))),
      back: String(this.data.back[this.slider("back").value]),
    };
  }
  restore() {
    const given = address.read();
    if (given.has("activation")) this.choose("activation", given.get("activation"));
    if (given.has("sigma_w"))
      this.slider("sigma_w").value = nearest(this.sigma, Number(given.get("sigma_w")));
    if (given.has("back")) this.slider("back").value = nearest(this.data.back, Number(given.get("back")));
  }

  changed() {
    if (this.framed !== this.chosen("activation")) this.frame();
    super.changed();
  }

  /** The range over all sigma_w of one activation, so that what sigma_w does can be seen. */
  frame() {
    const { plot, data } = this;
    this.framed = this.chosen("activation");
    const size = this.low.length / data.activations.length;
    const part = (values) => row(values, size, data.activations.indexOf(this.framed));
    const finite = [...part(this.low), ...part(this.high)].filter(Number.isFinite);
    const low = finite.reduce((a, b) => Math.min(a, b), 0);
    const high = finite.reduce((a, b) => Math.max(a, b), 0);
    plot.x = [0, data.back.at(-1)];
    plot.y = [low - 1, high + 1];
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

/** A picture of a grid of values in [0, 1], one pixel each, in shades of grey that suit any paper. */
function shade(values, rows, columns) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const at = 4 * ((rows - 1 - Math.floor(i / columns)) * columns + (i % columns));
    image.data.set([128, 128, 128, Math.round(200 * Math.min(1, Math.max(0, values[i])))], at);
  }
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

class ClippingFigure extends Figure {
  prepare() {
    const d = this.data;
    for (const name of ["tau", "w", "b", "loss", "gradient_norm", "clipped_norm", "step_size"])
      this[name] = unpack(d[name]);
    this.size = d.num_steps;
    const [map, course] = this.root.querySelectorAll("svg");
    const signed = (v) => fixed(v, 1);
    this.map = new Plot(map, {
      height: 380, xLabel: "weight w", yLabel: "bias b; shaded by the loss",
      xTicks: signed, yTicks: signed,
    });
    this.course = new Plot(course, { height: 380, xLabel: "step", yLabel: "norm of the gradient, log axis" });
    this.plots = [this.map, this.course];
    const [rows, columns] = d.map.loss.shape, losses = unpack(d.map.loss);
    const most = losses.reduce((a, b) => Math.max(a, b), 0);
    const picture = shade(losses.map((v) => Math.sqrt(v / most)), rows, columns);
    this.picture = element("image", { href: picture, preserveAspectRatio: "none" }, this.map.front);
    this.plain = element("path", { class: "ghost plain" }, this.map.front);
    this.line = element("path", { class: "measured path", "data-line": "" }, this.map.front);
    this.points = element("path", { class: "dots" }, this.map.front);
    this.here = element("circle", { class: "here", r: 6 }, this.map.front);
    const { front } = this.course;
    this.threshold = element("path", { class: "theory" }, front);
    this.before = element("path", { class: "measured kind-0" }, front);
    this.after = element("path", { class: "measured kind-1" }, front);
    this.cursor = element("path", { class: "cursor" }, front);
    this.marks = [0, 1].map((k) => element("circle", { class: `here kind-${k}`, r: 5 }, front));
    this.follow(this.course, "step", (x) => Math.max(0, Math.min(this.size - 1, Math.round(x))));
  }

  state() {
    const tau = this.tau[this.slider("tau").value];
    return {
      tau: Number.isFinite(tau) ? String(Number(tau.toPrecision(6))) : "inf",
      step: this.slider("step").value,
    };
  }
  restore() {
    const given = address.read();
    if (given.has("tau")) {
      const tau = given.get("tau");
      this.slider("tau").value = tau === "inf" ? this.tau.length - 1
        : nearest([...this.tau.subarray(0, -1)].map(Math.log), Math.log(Number(tau)));
    }
    if (given.has("step")) this.slider("step").value = given.get("step");
  }

  frame() {
    const { map, course, data } = this;
    [map.x, map.y] = [data.map.w, data.map.b];
    map.drawAxes();
    const box = { x: map.inner.left, y: map.inner.top, width: map.w, height: map.h };
    for (const [key, value] of Object.entries(box)) this.picture.setAttribute(key, value);
    const logs = [...this.gradient_norm, ...this.clipped_norm].map(Math.log10).filter(Number.isFinite);
    logs.sort((a, b) => a - b);
    course.x = [0, this.size - 1];
    // Where descent was thrown onto a plain the gradient is next to nothing, and left below.
    course.y = [Math.max(logs[0], logs.at(-1) - 5) - 0.3, logs.at(-1) + 0.3];
    course.drawAxes();
    const last = this.tau.length - 1;
    this.plain.setAttribute("d", map.line(row(this.w, this.size, last), row(this.b, this.size, last)));
  }

  draw() {
    const { map, course } = this;
    const i = Number(this.slider("tau").value), j = Number(this.slider("step").value);
    const tau = this.tau[i], steps = [...Array(this.size).keys()];
    const [w, b, loss, size, left, moved] = [
      "w", "b", "loss", "gradient_norm", "clipped_norm", "step_size",
    ].map((name) => row(this[name], this.size, i));
    const fired = [...size].filter((norm) => norm > tau).length;
    this.line.setAttribute("d", map.line(w, b));
    this.points.setAttribute("d", map.dots(w.subarray(0, j + 1), b.subarray(0, j + 1)));
    this.here.setAttribute("cx", map.px(w[j]));
    this.here.setAttribute("cy", map.py(b[j]));
    this.before.setAttribute("d", course.line(steps, size.map(Math.log10)));
    this.after.setAttribute("d", course.line(steps, left.map(Math.log10)));
    this.threshold.setAttribute("d", Number.isFinite(tau)
      ? course.line([0, this.size - 1], [Math.log10(tau), Math.log10(tau)]) : "");
    const x = course.px(j);
    this.cursor.setAttribute("d", `M${x} ${course.inner.top}V${course.inner.top + course.h}`);
    [size, left].forEach((norms, k) => {
      this.marks[k].setAttribute("cx", x);
      this.marks[k].setAttribute("cy", course.py(Math.log10(norms[j])));
    });
    const said = Number.isFinite(tau) ? tau.toPrecision(3) : "\u221e, no clipping";
    const fires = size[j] > tau;
    this.out.gradient.textContent = size[j].toPrecision(4);
    this.out.clipped.textContent = left[j].toPrecision(4);
    this.out.moved.textContent = moved[j].toPrecision(4);
    this.out.loss.textContent = loss[j].toPrecision(4);
    this.out.fired.textContent = `${fired} of ${this.size}`;
    this.out.regime.textContent = fires ? "clipped" : "untouched";
    this.root.dataset.regime = fires ? "exploding" : "vanishing";
    const inside = w[j] >= map.x[0] && w[j] <= map.x[1] && b[j] >= map.y[0] && b[j] <= map.y[1];
    this.out.where.textContent = `${fixed(w[j], 2)}, ${fixed(b[j], 2)}${inside ? "" : " (off the map)"}`;
    this.tell({ tau: `\u03c4 = ${said}`, step: `= ${j}` },
      `tau ${said}, step ${j}: gradient norm ${size[j].toPrecision(3)}, after clipping ${left[j].toPrecision(3)}`);
    this.slider("step").setAttribute("aria-valuetext", `step ${j}`);
    map.svg.setAttribute("aria-label",
      `Path of gradient descent over the loss, tau ${said}: ${fired} of ${this.size} steps clipped.`);
    course.svg.setAttribute("aria-label",
      `Norm of the gradient at each step, before and after clipping, log axis, tau ${said}.`);
  }
}

// ---- the page --------------------------------------------------------------------------------

const KINDS = { chain: ChainFigure, network: NetworkFigure, clipping: ClippingFigure };

function begin() {
  const given = address.read();
  let asked = null;
  for (const root of document.querySelectorAll("[data-figure]")) {
    const data = JSON.parse(document.getElementById(`data-${root.dataset.figure}`).textContent);
    const figure = new KINDS[root.dataset.figure](root, data);
    root.classList.add("alive");
    asked ??= Object.keys(figure.state()).some((key) => given.has(key)) ? root : null;
    addEventListener("hashchange", () => { figure.restore(); figure.frame(); figure.draw(); });
  }
  asked?.scrollIntoView();
  for (const button of document.querySelectorAll("button[data-copy]"))
    button.addEventListener("click", () => copy(button));
  addEventListener("beforeprint", () =>
    document.querySelectorAll("details[data-print]").forEach((d) => { d.open = true; }));
  document.documentElement.dataset.ready = performance.now().toFixed(1);
}

async function copy(button) {
  const code = button.previousElementSibling;
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = "selected";
  }
  setTimeout(() => { button.textContent = "copy"; }, 1500);
}

begin();
