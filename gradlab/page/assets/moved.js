/** How far each layer has moved after so many steps: plain, clipped, with the identity. */
class MovedFigure extends Figure {
  prepare() {
    const d = this.data;
    this.moved = unpack(d.log10_moved);
    this.size = d.layer.length;
    this.plot = new Plot(this.root.querySelector(".place svg"), {
      height: 380, xLabel: "layer; the loss is at the right", yLabel: "way of a layer's weights, log axis",
    });
    this.plots = [this.plot];
    const { front } = this.plot;
    this.cursor = element("path", { class: "cursor" }, front);
    this.drawn = d.kinds.map((kind, k) => ({
      line: element("path", { class: `measured ${MOVERS[k]}`, "data-line": kind }, front),
      dots: element("path", { class: `dots ${MOVERS[k]}` }, front),
      here: element("circle", { class: `here ${MOVERS[k]}`, r: 5 }, front),
      name: element("text", { class: `name ${MOVERS[k]}` }, front),
    }));
    this.follow(this.plot, "mover", (at) => nearest(d.layer, at.x));
  }

  state() {
    return {
      steps: String(this.data.steps[this.slider("steps").value]),
      mover: String(this.data.layer[this.slider("mover").value]),
    };
  }
  restore() {
    for (const [key, values] of [["steps", this.data.steps], ["mover", this.data.layer]]) {
      const asked = this.asked(key, values[0], values.at(-1));
      if (asked !== null) this.slider(key).value = nearest(values, asked);
    }
  }

  /** One range for all steps, so that the layers are seen to move. */
  frame() {
    const { plot, data } = this, finite = [...this.moved].filter(Number.isFinite);
    plot.x = [data.layer[0] - 0.5, data.layer.at(-1) + 0.5];
    plot.y = [Math.min(...finite) - 0.3, Math.max(...finite) + 0.5];
    plot.drawAxes();
  }

  draw() {
    const { plot, data } = this, s = Number(this.slider("steps").value), j = Number(this.slider("mover").value);
    const told = [], x = plot.px(data.layer[j]);
    this.cursor.setAttribute("d", `M${x} ${plot.inner.top}V${plot.inner.top + plot.h}`);
    data.kinds.forEach((kind, k) => {
      const values = row(this.moved, this.size, k * data.steps.length + s), drawn = this.drawn[k];
      drawn.line.setAttribute("d", plot.line(data.layer, values));
      drawn.dots.setAttribute("d", plot.dots(data.layer, values));
      drawn.here.setAttribute("cx", x);
      drawn.here.setAttribute("cy", plot.py(values[j]));
      drawn.name.setAttribute("x", plot.px(data.layer[0]));
      // Below the lower of two that run together.
      drawn.name.setAttribute("y", plot.py(values[0]) + (kind === "clipped" ? 18 : -9));
      drawn.name.textContent = kind;
      this.out[`way-${k}`].textContent = power(values[j], 2);
      told.push(`${kind} ${power(values[j], 1)}`);
    });
    const taken = data.steps[s];
    this.tell({ steps: `= ${grouped(taken)}`, mover: `= ${data.layer[j]}` },
      `layer ${data.layer[j]} after ${taken} steps has moved by ${told.join(", ")}`);
    this.slider("steps").setAttribute("aria-valuetext", `${taken} steps`);
    this.slider("mover").setAttribute("aria-valuetext", `layer ${data.layer[j]}`);
    plot.svg.setAttribute("aria-label",
      `How far each layer has moved after ${taken} steps, log axis: ${data.kinds.join(", ")}.`);
  }
}

const MOVERS = ["is-plain", "is-clipped", "is-residual"];
KINDS.moved = MovedFigure;
