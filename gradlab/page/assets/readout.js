/** Where a pointer is on a figure of the gallery, in the units of the panel's axes. */
function readout() {
  const told = document.createElement("div");
  told.className = "under";
  told.hidden = true;
  told.setAttribute("aria-hidden", "true"); // the numbers themselves are in the data, for everybody
  document.addEventListener("pointermove", (event) => {
    const image = event.target.closest?.("img[data-panels]");
    const said = image && under(image, event);
    told.hidden = !said;
    if (!said) return;
    const place = image.closest("dialog") ?? document.body;
    if (told.parentElement !== place) place.append(told);
    told.textContent = said;
    const right = event.clientX + 16 + told.offsetWidth > innerWidth;
    told.style.left = `${event.clientX + (right ? -12 - told.offsetWidth : 16)}px`;
    told.style.top = `${event.clientY + 16}px`;
  });
}

/** The values under a pointer, null outside of every panel. */
function under(image, event) {
  const box = image.getBoundingClientRect(), style = getComputedStyle(image);
  const rim = parseFloat(style.paddingLeft) + parseFloat(style.borderLeftWidth);
  const scale = image.getAttribute("width") / 2 / (box.width - 2 * rim); // points of the drawing to a pixel
  const at = [(event.clientX - box.left - rim) * scale, (event.clientY - box.top - rim) * scale];
  const panel = JSON.parse(image.dataset.panels).find(([[left, right, top, bottom]]) =>
    at[0] >= left && at[0] <= right && at[1] >= top && at[1] <= bottom);
  if (!panel) return null;
  return ["x", panel[3]].map((name, i) => [name, panel[i + 1], at[i]]).filter(([, axis]) => axis)
    .map(([name, axis, place]) => `${name} ${valueOn(axis, place)}`).join(",  ");
}

/** The value at a place of an axis that two of its ticks say, or the nearest of its words. */
function valueOn(axis, place) {
  if (Array.isArray(axis[0])) return axis[1][nearest(axis[0], place)];
  const [from, to, first, last, log] = axis;
  const value = first + ((place - from) / (to - from)) * (last - first);
  if (log) return power(value, 1);
  const digits = 2 - Math.floor(Math.log10(Math.abs(last - first)));
  return fixed(value, Math.max(0, Math.min(12, digits)));
}
