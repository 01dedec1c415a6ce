"use strict";
const words = document.documentElement.lang === "ko"
  ? { system: "화면: 기기 따라", light: "화면: 밝게", dark: "화면: 어둡게", find: "찾기", filter: "표에서 찾기", all: "모두", rows: "줄", hits: "곳" }
  : { system: "Theme: system", light: "Theme: light", dark: "Theme: dark", find: "Search", filter: "Find in the table", all: "all", rows: "rows", hits: "places" };

function make(tag, parent, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  parent.append(made);
  return made;
}

// The styles follow the device. A choice turns their rules for dark screens on or off; storage may be refused, e.g. for a file.
const themes = ["system", "light", "dark"];
const darkRules = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])
  .filter((rule) => rule.media && rule.media.mediaText.includes("prefers-color-scheme: dark")).map((rule) => rule.media);

function stored(theme) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch { return theme; }
}

function paint(theme) {
  document.documentElement.style.colorScheme = theme === "system" ? "" : theme;
  for (const medium of darkRules) medium.mediaText = { system: "(prefers-color-scheme: dark)", light: "not all", dark: "all" }[theme];
}

let theme = themes.includes(stored()) ? stored() : "system";
paint(theme);

function addTools(header) {
  const tools = make("div", header, { className: "tools" });
  const place = header.querySelector("a.search").href;
  const box = make("input", tools, { type: "search", placeholder: words.find, ariaLabel: words.find });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && box.value.trim()) location.href = `${place}#${encodeURIComponent(box.value.trim())}`;
  });
  const button = make("button", tools, { type: "button", textContent: words[theme] });
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    stored(theme);
    paint(theme);
    button.textContent = words[theme];
  });
}

// The contents are open where they stand beside the page, and mark what is being read.
function followContents(toc) {
  const wide = matchMedia("(min-width: 80rem)");
  const unfold = () => { toc.open = wide.matches; };
  wide.addEventListener("change", unfold);
  unfold();
  const links = new Map([...toc.querySelectorAll("a")].map((link) => [decodeURIComponent(link.hash.slice(1)), link]));
  const seen = new IntersectionObserver((entries) => {
    const now = entries.filter((entry) => entry.isIntersecting)[0];
    if (!now) return;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(now.target.id).setAttribute("aria-current", "true");
  }, { rootMargin: "0px 0px -75% 0px" });
  for (const id of links.keys()) if (document.getElementById(id)) seen.observe(document.getElementById(id));
}

// A table that sorts by a column, numbers as numbers, and shows the rows that hold every word.
const valueOf = (row, column) => {
  const text = row.cells[column].textContent.trim();
  return /^[+-]?[\d.,]+/.test(text) ? parseFloat(text.replaceAll(",", "")) : text;
};

function order(a, b) {
  if ((a === "–") !== (b === "–")) return a === "–" ? Infinity : -Infinity;
  return typeof a === typeof b && typeof a === "number" ? a - b : String(a).localeCompare(String(b), "ko");
}

function sortBy(table, column, head) {
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const found = order(valueOf(a, column), valueOf(b, column));
    return Math.abs(found) === Infinity || up ? Math.sign(found) : -found;
  });
  table.tBodies[0].append(...rows);
}

const normal = (text) => text.normalize("NFC").toLowerCase();

function enliven(table) {
  const heads = [...table.tHead.rows[0].cells], rows = [...table.tBodies[0].rows];
  const filters = document.createElement("div");
  filters.className = "filters";
  table.parentElement.before(filters);
  const box = make("input", filters, { type: "search", placeholder: words.filter, ariaLabel: words.filter });
  const lists = [1, 2, 3, 5].map((column) => {
    const list = make("select", filters, { ariaLabel: heads[column].textContent });
    make("option", list, { value: "", textContent: `${heads[column].textContent}: ${words.all}` });
    for (const text of [...new Set(rows.map((row) => row.cells[column].textContent))].sort()) make("option", list, { value: text, textContent: text });
    return [column, list];
  });
  const count = make("span", filters);
  const sift = () => {
    const asked = normal(box.value).split(/\s+/).filter(Boolean);
    for (const row of rows) {
      row.hidden = !asked.every((word) => normal(row.textContent).includes(word))
        || lists.some(([column, list]) => list.value && row.cells[column].textContent !== list.value);
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} ${words.rows}`;
  };
  filters.addEventListener("input", sift);
  sift();
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, column, head));
  });
}

// The search: every word must stand in a section, in its title or in the title of its page; any part of a Korean word finds it.
function showHit(list, page, section, asked) {
  const item = make("li", list), [address, title] = page, [, id, heading, text] = section;
  make("a", item, { href: `${address}#${encodeURIComponent(id)}`, textContent: heading });
  make("small", item, { textContent: ` ${title}` });
  const low = normal(text), at = Math.max(0, ...asked.map((word) => low.indexOf(word)).filter((n) => n >= 0).slice(0, 1));
  const from = Math.max(0, at - 60), piece = text.slice(from, from + 200), line = make("p", item);
  let rest = 0;
  const first = asked.find((word) => normal(piece).includes(word));
  for (let n = first ? normal(piece).indexOf(first) : -1; n >= 0; n = normal(piece).indexOf(first, rest)) {
    line.append(piece.slice(rest, n));
    make("mark", line, { textContent: piece.slice(n, n + first.length) });
    rest = n + first.length;
  }
  line.append(piece.slice(rest));
}

function search(main, index) {
  const box = make("input", make("div", main, { className: "find" }), { type: "search", placeholder: words.find, ariaLabel: words.find });
  const count = make("p", main, { role: "status" }), list = make("ol", main, { className: "hits" });
  const texts = index.sections.map(([page, , title, text]) => [normal(index.pages[page][1]), normal(title), normal(text)]);
  const find = () => {
    const asked = normal(box.value).split(/\s+/).filter(Boolean);
    const worth = (section) => texts[section].reduce((sum, text, n) => sum + asked.filter((word) => text.includes(word)).length * [4, 9, 1][n], 0);
    const found = !asked.length ? [] : index.sections.map((_, n) => n)
      .filter((n) => asked.every((word) => texts[n].some((text) => text.includes(word))))
      .map((n) => [worth(n), n]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    list.replaceChildren();
    count.textContent = asked.length ? `${found.length} ${words.hits}` : "";
    for (const [, n] of found.slice(0, 60)) showHit(list, index.pages[index.sections[n][0]], index.sections[n], asked);
  };
  const ask = () => { box.value = decodeURIComponent(location.hash.slice(1)); find(); };
  box.addEventListener("input", find);
  addEventListener("hashchange", ask);
  ask();
  box.focus();
}

addEventListener("DOMContentLoaded", () => {
  addTools(document.querySelector("header.site"));
  const toc = document.querySelector(".toc"), index = document.getElementById("index"), runs = document.querySelector(".wide ~ main table");
  if (toc) followContents(toc);
  if (runs) enliven(runs);
  if (index) search(document.querySelector("main"), JSON.parse(index.textContent));
});
