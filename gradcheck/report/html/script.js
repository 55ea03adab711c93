"use strict";
(() => {
  const root = document.documentElement;
  const tip = document.getElementById("tip");
  const FIRST = 50, LEFT = 92, RIGHT = 988, WIDTH = 1000; // as in layers.py and depth.py
  const CODES = { 0: "not measured", 1: "0", 2: "NaN or infinite" }; // as in heatmap.py
  root.classList.add("js");

  function button(id, press) {
    const it = document.getElementById(id);
    it.hidden = false;
    it.addEventListener("click", () => press(it));
  }

  button("theme", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  button("unfold", (it) => {
    const all = [...document.querySelectorAll("main details")];
    const open = all.some((d) => !d.open);
    for (const d of all) d.open = open;
    it.textContent = open ? "fold all" : "unfold all";
  });

  function unfoldTarget() {
    let it = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (; it; it = it.parentElement) if (it.tagName === "DETAILS") it.open = true;
  }
  addEventListener("hashchange", unfoldTarget);
  unfoldTarget();

  // What is folded is printed too, and folded again afterwards.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll(".finding:not([open]),.folded:not([open]),.follows details:not([open])")];
    for (const d of folded) d.open = true;
  });
  addEventListener("afterprint", () => { for (const d of folded) d.open = false; });

  function short(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1e5 ? String(+value.toPrecision(2)) : value.toExponential(1);
  }

  function table(article) {
    const it = article.querySelector(".layers-table");
    const rows = [...it.querySelectorAll("tbody tr")];
    const bodies = it.tBodies;
    const tools = it.closest("section").querySelector(".tools");
    const filter = document.createElement("input");
    const count = document.createElement("span");
    filter.type = "search";
    filter.placeholder = "filter: name, type, finding";
    filter.setAttribute("aria-label", "filter the layers");
    count.setAttribute("role", "status");
    count.className = "soft";
    tools.prepend(filter, count);

    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((w) => text.includes(w));
        shown += !row.hidden;
      }
      it.classList.toggle("filtering", words.length > 0);
      count.textContent = words.length ? `${shown} of ${rows.length} layers` : "";
    });

    // Numbers by size (NaN above everything, empty cells last), the rest as text.
    function key(row, column) {
      const text = row.cells[column].textContent.trim();
      if (text === "") return null;
      if (text === "NaN") return Infinity;
      const number = Number(text.replace(/,/g, "").replace("inf", "Infinity"));
      return Number.isNaN(number) ? text : number;
    }

    [...it.tHead.rows[0].cells].forEach((cell, column) => {
      if (cell.textContent === "over steps") return;
      const press = document.createElement("button");
      press.type = "button";
      press.textContent = cell.textContent;
      cell.replaceChildren(press);
      press.addEventListener("click", () => {
        const down = cell.getAttribute("aria-sort") === "ascending";
        for (const other of it.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", down ? "descending" : "ascending");
        const order = rows.map((row, i) => [key(row, column), i, row]);
        order.sort(([a, i], [b, j]) => {
          if (a === null || b === null) return (a === null) - (b === null) || i - j;
          const sign = typeof a === "string" || typeof b === "string" ? String(a).localeCompare(String(b), undefined, { numeric: true }) : a - b;
          return (down ? -sign : sign) || i - j;
        });
        order.forEach(([, , row], i) => bodies[i < FIRST ? 0 : 1].append(row));
      });
    });
    return rows;
  }

  function depth(block, every) {
    const data = JSON.parse(block.querySelector(".numbers").textContent);
    const rows = data.rows.map((i) => every[i]);
    const charts = [...block.querySelectorAll(".chart")];
    const cells = {};
    for (const [name, stat] of Object.entries(data.stats)) cells[name] = Uint8Array.from(atob(stat[4]), (c) => c.charCodeAt(0));
    const slider = block.querySelector(".scroll");
    const facts = { role: "slider", tabindex: 0, "aria-label": "layer", "aria-valuemin": 0, "aria-valuemax": rows.length - 1, "aria-valuenow": 0 };
    facts["aria-description"] = slider.querySelector("desc").textContent;
    for (const [name, value] of Object.entries(facts)) slider.setAttribute(name, value);
    let at = 0;

    function chosen() {
      const box = block.querySelector(".choices input:checked");
      return box ? box.value : null;
    }

    function reading(step) {
      const [name, type, gradient, output, finding] = [1, 2, 5, 7, 11].map((c) => rows[at].cells[c].textContent);
      const lines = [`${data.rows[at]}  ${name}  ${type}`];
      if (gradient) lines.push(`gradient ${gradient}`);
      if (output) lines.push(`output   ${output}`);
      const stat = chosen();
      if (step !== null && stat) {
        const [title, low, high, log, ] = data.stats[stat];
        const code = cells[stat][step * rows.length + at];
        const x = low + ((code - 3) / 252) * (high - low);
        lines.push(`step ${data.steps[step]}: ${title} ${code in CODES ? CODES[code] : "about " + short(log ? 10 ** x : x)}`);
      }
      if (finding) lines.push(finding);
      return lines;
    }

    function move(i, step, x, y) {
      rows[at].classList.remove("here");
      at = Math.max(0, Math.min(rows.length - 1, i));
      rows[at].classList.add("here");
      block.classList.add("active");
      const place = LEFT + ((at + 0.5) / rows.length) * (RIGHT - LEFT);
      for (const line of block.querySelectorAll(".cursor")) {
        line.setAttribute("x1", place);
        line.setAttribute("x2", place);
      }
      const lines = reading(step);
      slider.setAttribute("aria-valuenow", at);
      slider.setAttribute("aria-valuetext", lines.join(", "));
      tip.textContent = lines.join("\n");
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      tip.style.left = Math.max(6, x + 16 + box.width > innerWidth ? x - box.width - 16 : x + 16) + "px";
      tip.style.top = Math.max(6, Math.min(y + 14, innerHeight - box.height - 8)) + "px";
    }

    function leave() {
      block.classList.remove("active");
      rows[at].classList.remove("here");
      tip.hidden = true;
    }

    for (const chart of charts) {
      chart.addEventListener("pointermove", (e) => {
        const box = chart.getBoundingClientRect();
        const x = ((e.clientX - box.left) / box.width) * WIDTH;
        if (x < LEFT || x > RIGHT) return leave();
        const frame = chart.querySelector(".frame");
        let step = null;
        if (frame) {
          const inside = frame.getBoundingClientRect();
          const share = (e.clientY - inside.top) / inside.height;
          if (share >= 0 && share < 1) step = Math.floor(share * data.steps.length);
        }
        move(Math.floor(((x - LEFT) / (RIGHT - LEFT)) * rows.length), step, e.clientX, e.clientY);
      });
      chart.addEventListener("pointerleave", leave);
    }

    const jumps = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity };
    slider.addEventListener("keydown", (e) => {
      if (!(e.key in jumps)) return;
      e.preventDefault();
      const box = charts[0].getBoundingClientRect();
      const to = Math.max(0, Math.min(rows.length - 1, block.classList.contains("active") ? at + jumps[e.key] : at));
      const x = box.left + (box.width * (LEFT + ((to + 0.5) / rows.length) * (RIGHT - LEFT))) / WIDTH;
      move(to, null, x, Math.max(box.top, 60) + 20);
    });
    slider.addEventListener("blur", leave);
  }

  for (const article of document.querySelectorAll(".report")) {
    const rows = article.querySelector(".layers-table") ? table(article) : [];
    const block = article.querySelector(".over-depth");
    if (block) depth(block, rows);
  }
})();
