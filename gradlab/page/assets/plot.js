const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

let plots = 0;

/** Axes in an SVG that is as wide as its place, so that letters keep their size on a phone. */
class Plot {
  /** `low` is its height where there is little room. */
  constructor(svg, { height, low = 0.82 * height, xLabel, yLabel, xTicks, yTicks }) {
    Object.assign(this, { svg, height, low, xLabel, yLabel });
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
    this.tall = Math.round(narrow ? this.low : this.height);
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
  /** Where a pointer is: in the drawing (px, py) and on the axes (x, y). */
  at(event) {
    const box = this.svg.getBoundingClientRect(), scale = this.width / box.width;
    const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
    const part = [(px - this.inner.left) / this.w, (py - this.inner.top) / this.h];
    return {
      px, py,
      x: this.x[0] + part[0] * (this.x[1] - this.x[0]),
      y: this.y[1] - part[1] * (this.y[1] - this.y[0]),
    };
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
