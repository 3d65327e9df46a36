"use strict";
const value = (row, index) => {
  const cell = row.cells[index];
  return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
};
const compare = (a, b) => {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
};
const sort = (table, head, index) => {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (down ? -1 : 1) * compare(value(a, index), value(b, index)));
  table.tBodies[0].append(...rows);
};
for (const table of document.querySelectorAll("table")) {
  if (table.tBodies[0].rows.length < 3) continue;
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head, index));
    head.append(button);
  });
}
for (const table of document.querySelectorAll("table")) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length <= 8) continue;
  const found = document.createElement("input");
  const plain = text => text.trim().toLowerCase();
  found.type = "search";
  found.className = "find";
  found.placeholder = `Find in ${rows.length.toLocaleString("en")} rows`;
  found.setAttribute("aria-label", `Find in: ${table.getAttribute("aria-label")}`);
  found.addEventListener("input", () => {
    const asked = plain(found.value);
    for (const row of rows) row.hidden = ![...row.cells].some(cell => plain(cell.textContent).includes(asked));
  });
  table.parentElement.before(found);
}
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
});
