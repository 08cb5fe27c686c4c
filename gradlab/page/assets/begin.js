function begin() {
  const given = address.read();
  let asked = null;
  for (const root of document.querySelectorAll("[data-figure]")) {
    const data = JSON.parse(document.getElementById(`data-${root.dataset.from || root.dataset.figure}`).textContent);
    const figure = new KINDS[root.dataset.figure](root, data);
    root.classList.add("alive");
    asked ??= Object.keys(figure.state()).some((key) => given.has(key)) ? root : null;
    addEventListener("hashchange", () => { figure.reopen(); });
  }
  asked?.scrollIntoView();
  document.querySelector("[data-present]")?.addEventListener("click", (event) => {
    const on = document.body.classList.toggle("present");
    event.target.setAttribute("aria-pressed", String(on));
  });
  for (const button of document.querySelectorAll("button[data-copy]"))
    button.addEventListener("click", () => copy(button));
  search();
  reveal();
  addEventListener("hashchange", reveal);
  addEventListener("beforeprint", () =>
    document.querySelectorAll("details[data-print]").forEach((d) => { d.open = true; }));
  document.documentElement.dataset.ready = performance.now().toFixed(1);
}

/** Only the cards that hold every word which is typed; the contents follow. */
function search() {
  const field = document.getElementById("search");
  if (!field) return;
  field.parentElement.hidden = false;
  const cards = [...document.querySelectorAll("article.card")];
  const texts = cards.map((card) => card.textContent.toLowerCase());
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    cards.forEach((card, i) => {
      const there = words.every((word) => texts[i].includes(word));
      count += there;
      card.hidden = !there;
      const line = document.querySelector(`.contents a[href="#${CSS.escape(card.id)}"]`);
      if (line) line.parentElement.hidden = !there;
    });
    document.getElementById("found").textContent = `${count} of ${cards.length}`;
  });
}

/** A claim that the address names is shown, though its table was closed. */
function reveal() {
  const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const closed = place?.closest("details:not([open])");
  if (!closed) return;
  closed.open = true;
  place.scrollIntoView();
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
