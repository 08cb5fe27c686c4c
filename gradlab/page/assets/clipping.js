/** A picture of a grid of values in [0, 1], one pixel each: more is darker, whatever the paper. */
function shade(values, rows, columns) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const at = 4 * ((rows - 1 - Math.floor(i / columns)) * columns + (i % columns));
    const grey = Math.round(252 - 150 * Math.min(1, Math.max(0, values[i])));
    image.data.set([grey, grey, grey, 255], at);
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
    const [map, course] = this.root.querySelectorAll(".place svg");
    const signed = (v) => fixed(v, 1);
    this.map = new Plot(map, {
      height: 380, low: 240, xLabel: "weight w", yLabel: "bias b; shaded by the loss",
      xTicks: signed, yTicks: signed,
    });
    this.course = new Plot(course, { height: 380, low: 220, xLabel: "step", yLabel: "norm of the gradient, log axis" });
    this.plots = [this.map, this.course];
    const [rows, columns] = d.map.loss.shape, losses = unpack(d.map.loss);
    const most = losses.reduce((a, b) => Math.max(a, b), 0);
    const picture = shade(losses.map((v) => Math.sqrt(v / most)), rows, columns);
    this.map.front.classList.add("map");
    this.picture = element("image", { href: picture, preserveAspectRatio: "none" }, this.map.front);
    this.plain = element("path", { class: "ghost is-plain" }, this.map.front);
    this.line = element("path", { class: "measured path is-clipped", "data-line": "" }, this.map.front);
    this.points = element("path", { class: "dots is-clipped" }, this.map.front);
    this.here = element("circle", { class: "here is-clipped", r: 6 }, this.map.front);
    const { front } = this.course;
    this.threshold = element("path", { class: "theory" }, front);
    this.knob = element("g", { class: "knob" }, this.course.over);
    // What is held does not scroll the page; `touch-action` is not heeded within a drawing.
    this.knob.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
    for (const [look, r] of [["reach", 22], ["hold", 8]]) element("circle", { class: look, r }, this.knob);
    this.before = element("path", { class: "measured is-plain" }, front);
    this.after = element("path", { class: "measured is-clipped" }, front);
    this.cursor = element("path", { class: "cursor" }, front);
    this.marks = [0, 1].map((k) => element("circle", { class: `here ${["is-plain", "is-clipped"][k]}`, r: 5 }, front));
    const step = (at) => Math.max(0, Math.min(this.size - 1, Math.round(at.x)));
    this.follow(this.course, "step", step, (at, knob) => this.grip(at, knob));
    this.follow(this.map, "step", (at) => this.onWay(at));
  }

  /** The line of τ and its knob: they are where the pointer that holds them is. */
  grip({ py }, knob) {
    const tau = this.tau[this.slider("tau").value];
    if (!knob && !(Math.abs(this.course.py(Math.log10(tau)) - py) <= REACH)) return null;
    const logs = [...this.tau.subarray(0, -1)].map(Math.log10);
    return (at) => { this.slider("tau").value = nearest(logs, at.y); };
  }

  /** The step whose point on the way is nearest to a place on the map. */
  onWay({ px, py }) {
    const [w, b] = [this.w, this.b].map((all) => row(all, this.size, Number(this.slider("tau").value)));
    return nearest([...w.keys()].map((j) => Math.hypot(this.map.px(w[j]) - px, this.map.py(b[j]) - py)), 0);
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
      const finite = this.tau.subarray(0, -1);
      const tau = given.get("tau") === "inf" ? Infinity : this.asked("tau", finite[0], finite.at(-1));
      if (tau === Infinity) this.slider("tau").value = finite.length;
      else if (tau !== null) this.slider("tau").value = nearest([...finite].map(Math.log), Math.log(tau));
    }
    const step = this.asked("step", 0, this.size - 1);
    if (step !== null) this.slider("step").value = Math.round(step);
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
    const top = Math.max(course.inner.top, course.py(Number.isFinite(tau) ? Math.log10(tau) : Infinity));
    this.knob.setAttribute("transform", `translate(${course.inner.left + course.w - 10} ${top})`);
    const x = course.px(j);
    this.cursor.setAttribute("d", `M${x} ${course.inner.top}V${course.inner.top + course.h}`);
    [size, left].forEach((norms, k) => {
      this.marks[k].setAttribute("cx", x);
      this.marks[k].setAttribute("cy", course.py(Math.log10(norms[j])));
    });
    const said = Number.isFinite(tau) ? significant(tau, 3) : "\u221e, no clipping";
    const fires = size[j] > tau;
    this.out.gradient.textContent = significant(size[j], 4);
    this.out.clipped.textContent = significant(left[j], 4);
    this.out.moved.textContent = significant(moved[j], 4);
    this.out.loss.textContent = significant(loss[j], 4);
    this.out.fired.textContent = `${fired} of ${this.size}`;
    this.out.regime.textContent = fires ? "clipped" : "untouched";
    this.root.dataset.regime = fires ? "clipped" : "plain";
    const inside = w[j] >= map.x[0] && w[j] <= map.x[1] && b[j] >= map.y[0] && b[j] <= map.y[1];
    this.out.where.textContent = `${fixed(w[j], 2)}, ${fixed(b[j], 2)}${inside ? "" : " (off the map)"}`;
    this.tell({ tau: `\u03c4 = ${said}`, step: `= ${j}` },
      `tau ${said}, step ${j}: gradient norm ${significant(size[j], 3)}, after clipping ${significant(left[j], 3)}`);
    this.slider("step").setAttribute("aria-valuetext", `step ${j}`);
    map.svg.setAttribute("aria-label",
      `Path of gradient descent over the loss, tau ${said}: ${fired} of ${this.size} steps clipped.`);
    course.svg.setAttribute("aria-label",
      `Norm of the gradient at each step, before and after clipping, log axis, tau ${said}.`);
  }
}

KINDS.clipping = ClippingFigure;
