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

/** What all figures share: controls by name, read-outs by name, the address, one redraw. */
class Figure {
  constructor(root, data) {
    this.root = root;
    this.data = data;
    this.out = Object.fromEntries(
      [...root.querySelectorAll("[data-out]")].map((e) => [e.dataset.out, e]));
    this.spoken = root.querySelector("[data-spoken]");
    this.refused = [];
    this.prepare();
    this.restore();
    this.refuse();
    this.root.querySelectorAll("input[type=range]").forEach(unlessScrolled);
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
    const radios = [...this.root.querySelectorAll(`input[type=radio][name=${name}]`)];
    const radio = radios.find((r) => r.value === value);
    if (radio) radio.checked = true;
    else if (value) this.refused.push(`${name} = ${value.slice(0, 40)} cannot be shown; allowed: ${radios.map((r) => r.value).join(", ")}`);
  }

  /** The address was edited by hand. */
  reopen() {
    this.refused = [];
    this.restore();
    this.refuse();
    this.frame();
    this.draw();
  }

  /** The number that the address has for a key, null where it has none that can be shown. */
  asked(key, low, high) {
    const given = address.read().get(key);
    if (given === null || given === "") return null;
    const value = Number(given);
    if (Number.isFinite(value) && value >= low && value <= high) return value;
    this.refused.push(`${key} = ${given.slice(0, 40)} cannot be shown; allowed: ${short(low)} to ${short(high)}`);
    return null;
  }
  refuse() {
    const place = this.root.querySelector("[data-refused]");
    place.textContent = this.refused.join(". ");
    place.hidden = !this.refused.length;
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

  /**
   * A slider follows a pointer that is dragged over the plot; what `grip` finds under it moves itself.
   * A knob is there to be held: under a finger too it moves at once, in any direction.
   */
  follow(plot, name, index, grip = () => null) {
    const along = (at) => { this.slider(name).value = index(at); };
    // A finger that is to scroll the page begins like one that is to point: its direction tells.
    let from = null, held = false, drag = along;
    const move = (event) => { drag(plot.at(event)); this.changed(); };
    plot.svg.addEventListener("pointerdown", (event) => {
      from = event;
      const knob = event.target.closest(".knob") !== null;
      drag = grip(plot.at(event), knob) ?? along;
      held = knob || event.pointerType !== "touch";
      if (!held) return;
      plot.svg.setPointerCapture(event.pointerId);
      if (!knob) move(event);
    });
    plot.svg.addEventListener("pointermove", (event) => {
      if (!event.buttons) plot.svg.style.cursor = grip(plot.at(event), event.target.closest(".knob") !== null) ? "move" : "";
      if (!event.buttons || !from) return;
      const across = Math.abs(event.clientX - from.clientX), down = Math.abs(event.clientY - from.clientY);
      held ||= across > 8 && across > down;
      if (held) move(event);
    });
    plot.svg.addEventListener("pointercancel", () => { from = null; });
  }
}

const REACH = 14; // pixels from which a line is taken hold of

/** A slider under a finger that turned out to scroll the page is put back. */
function unlessScrolled(slider) {
  let before = null;
  slider.addEventListener("pointerdown", () => { before = slider.value; });
  slider.addEventListener("pointercancel", () => {
    if (before === null || slider.value === before) return;
    slider.value = before;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  });
}

const REGIMES = {
  vanishing: "vanishing", edge: "knife edge", exploding: "exploding",
};

/** The class of each figure, by its place. */
const KINDS = {};
