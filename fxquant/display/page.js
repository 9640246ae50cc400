
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  // Tables: a heading sorts up, then down, then back; what is empty stays below.
  for (const block of all(".table")) {
    const table = block.querySelector("table");
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const headings = all("thead th", table);
    const order = new Intl.Collator(undefined, { numeric: true });

    const sort = (column) => {
      const heading = headings[column];
      const is = heading.getAttribute("aria-sort");
      const next = { none: "ascending", ascending: "descending", descending: "none" }[is];
      for (const each of headings) each.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", next);
      const numbers = heading.classList.contains("num");
      const valueOf = (row) => {
        const cell = row.cells[column];
        const text = cell.dataset.v ?? cell.textContent.trim();
        if (text === "") return null;
        return numbers ? Number(text.replace("inf", "Infinity")) : text;
      };
      const keyed = rows.map((row) => [valueOf(row), row]);
      if (next !== "none") {
        const sign = next === "ascending" ? 1 : -1;
        keyed.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          return sign * (numbers ? (a > b) - (a < b) : order.compare(a, b));
        });
      }
      body.append(...keyed.map(([, row]) => row));
    };
    headings.forEach((heading, column) =>
      heading.querySelector("button").addEventListener("click", () => sort(column)));

    const controls = block.querySelector(".controls");
    if (!controls) continue;
    controls.hidden = false;
    const [box, kinds, said] = ["input", "select", "output"].map((tag) => controls.querySelector(tag));
    const texts = rows.map((row) =>
      [...row.cells].map((cell) => `${cell.textContent} ${cell.dataset.v ?? ""}`).join("\n").toLowerCase());
    const kindOf = (row) => {
      const cell = row.querySelector("[data-kind]");
      return cell ? cell.dataset.v ?? cell.textContent : "";
    };
    const filter = () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      const kind = kinds ? kinds.value : "";
      let shown = 0;
      rows.forEach((row, number) => {
        const fits = words.every((word) => texts[number].includes(word));
        row.hidden = !fits || (kind !== "" && kindOf(row) !== kind);
        shown += !row.hidden;
      });
      said.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
    };
    box.addEventListener("input", filter);
    if (kinds) kinds.addEventListener("change", filter);
    table.addEventListener("reveal", () => {
      box.value = "";
      if (kinds) kinds.value = "";
      filter();
    });
  }

  // A link to a row that is filtered away brings it back.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    const row = link && document.getElementById(link.getAttribute("href").slice(1));
    if (row && row.hidden) row.closest("table").dispatchEvent(new Event("reveal"));
  });

  // Details beside what the pointer or the focus is on: a bar's values, a row's histograms.
  const histograms = new Map();
  for (const each of all(".hist[data-row]")) {
    const known = histograms.get(each.dataset.row) ?? [];
    if (each.dataset.row) histograms.set(each.dataset.row, [...known, each]);
  }
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);

  const show = (target, lines) => {
    const drawn = histograms.get(target.dataset.row) ?? [];
    if (!lines.length && !drawn.length) return;
    tip.replaceChildren(
      ...lines.map((line) => Object.assign(document.createElement("p"), { textContent: line })),
      ...drawn.map((each) => each.cloneNode(true)));
    tip.hidden = false;
    const box = target.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = tip;
    const left = target.matches("th") ? box.right + 8 : box.left + box.width / 2 - width / 2;
    const top = target.matches("th") ? box.top : box.top - height - 8;
    tip.style.left = `${Math.max(12, Math.min(left, innerWidth - width - 12))}px`;
    tip.style.top = `${Math.max(8, Math.min(top < 8 ? box.bottom + 8 : top, innerHeight - height - 8))}px`;
  };
  const hide = () => { tip.hidden = true; };

  const watch = (target, lines) => {
    target.addEventListener("pointerenter", () => show(target, lines));
    target.addEventListener("pointerleave", hide);
    target.addEventListener("focus", () => show(target, lines));
    target.addEventListener("blur", hide);
  };
  for (const column of all(".col")) {
    const lines = column.title.split("\n");
    column.removeAttribute("title");
    watch(column, lines);
  }
  for (const row of all("tr[data-row]")) {
    const name = row.cells[0];
    name.dataset.row = row.dataset.row;
    if (histograms.has(row.dataset.row)) watch(name, [name.textContent]);
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("scroll", hide, { capture: true, passive: true });

  // Bars are one stop of the tab key; arrows go along them.
  for (const group of all(".cols")) {
    const columns = all(".col", group);
    columns.forEach((column, number) => {
      column.tabIndex = number === 0 ? 0 : -1;
      column.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        const next = step && columns[number + step];
        if (!next) return;
        event.preventDefault();
        column.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      });
    });
  }
})();
