/** Only the cards that hold every word which is typed; groups and contents follow. */
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
      const line = document.querySelector(`.contents a[href="#${CSS.escape(encodeURIComponent(card.id))}"]`);
      if (line) line.parentElement.hidden = !there;
    });
    for (const group of document.querySelectorAll("section.group:has(article), .shelf li:has(.contents)"))
      group.hidden = !group.querySelector("article:not([hidden]), .contents li:not([hidden])");
    document.getElementById("found").textContent = `${count} of ${cards.length}`;
  });
}

/** The contents stand open beside the cards; where there is no room they open above them. */
function contents() {
  const list = document.querySelector("[data-contents]");
  if (!list) return;
  const wide = matchMedia("(min-width: 72rem)");
  const fit = () => { list.open = wide.matches; };
  fit();
  wide.addEventListener("change", fit);
  list.addEventListener("click", (event) => {
    if (event.target.closest("a") && !wide.matches) list.open = false;
  });
}

/** What an address names is shown, though its card or its table was closed. */
function reveal(address = location.hash) {
  const place = document.getElementById(decodeURIComponent(address.slice(1)));
  if (!place) return;
  const closed = [place.querySelector(":scope > details:not([open])")];
  for (let one = place; one; one = one.parentElement?.closest("details:not([open])")) closed.push(one);
  const open = closed.filter((one) => one?.tagName === "DETAILS" && !one.open);
  for (const one of open) one.open = true;
  if (open.length) place.scrollIntoView();
}

/** A figure at full size, in front of the page; without a script its link leads to the file. */
function zoom() {
  const dialog = document.getElementById("zoom");
  if (!dialog) return;
  dialog.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.querySelector("img")?.remove());
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-zoom]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const large = link.querySelector("img").cloneNode();
    large.loading = "eager";
    dialog.append(large);
    dialog.showModal();
  });
}

/** Two runs of one experiment side by side: copies, without the addresses of the originals. */
function compare() {
  for (const place of document.querySelectorAll(".compare")) {
    const runs = [...place.closest("article").querySelectorAll("[data-run]")];
    const chosen = [...place.querySelectorAll("select")];
    const show = () => {
      const copies = chosen.filter((one) => one.value).map((one) => runs[one.value].cloneNode(true));
      for (const copy of copies) {
        for (const named of copy.querySelectorAll("[id]")) named.removeAttribute("id");
        if (!copy.querySelector("h4")) {
          const title = document.createElement("h4");
          title.textContent = copy.dataset.run;
          copy.prepend(title);
        }
      }
      place.querySelector(".pair").replaceChildren(...copies);
    };
    for (const one of chosen) {
      one.append(new Option("choose a run", ""), ...runs.map((run, i) => new Option(run.dataset.run, i)));
      one.addEventListener("change", show);
    }
    place.hidden = false;
  }
}
