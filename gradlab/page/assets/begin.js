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
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-copy]"), link = event.target.closest('a[href^="#"]');
    if (button) copy(button);
    if (link) reveal(link.hash);
  });
  search();
  contents();
  zoom();
  compare();
  readout();
  reveal();
  addEventListener("hashchange", () => reveal());
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
