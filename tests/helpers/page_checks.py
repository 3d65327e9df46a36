"""What a page must keep to at any width and in any colours, as JavaScript that answers with a list of complaints."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path


def _axe() -> str:
    """Deque's axe-core as a script, from a file that VITPRUNE_AXE names or the package that brings it; else nothing."""
    found = importlib.util.find_spec("axe_core_python")
    place = Path(found.origin).with_name("axe.min.js") if found is not None and found.origin else None
    path = Path(os.environ["VITPRUNE_AXE"]) if "VITPRUNE_AXE" in os.environ else place
    return path.read_text("utf-8") if path is not None and path.is_file() else ""


AXE = _axe()

# Text that is cut or runs into other text, in figures and out of them; a page wider than its window.
LAYOUT = r"""
(() => {
  const found = [];
  const say = (what, node) => found.push(`${what}: ${(node.textContent || "").trim().slice(0, 40)}`);
  const page = document.documentElement;
  if (page.scrollWidth > innerWidth) found.push(`page is ${page.scrollWidth} wide in a window of ${innerWidth}`);
  document.querySelectorAll("details").forEach(fold => { fold.open = true; });
  const visible = box => box.width > 0 && box.height > 0;
  for (const svg of document.querySelectorAll("svg.plot")) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(node => [node, node.getBoundingClientRect()]);
    const flat = texts.filter(([node, box]) => visible(box) && !/rotate\(-(?!0)/.test(node.getAttribute("transform")));
    for (const [node, box] of texts)
      if (box.left < frame.left - 2 || box.right > frame.right + 2 ||
          box.top < frame.top - 2 || box.bottom > frame.bottom + 2) say("outside its figure", node);
    flat.forEach(([node, a], i) => flat.slice(i + 1).forEach(([other, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1.5 && high > 0.35 * Math.min(a.height, b.height)) say(`on ${node.textContent.trim()}`, other);
    }));
  }
  for (const node of document.querySelectorAll("h1, h2, h3, p, li, dt, dd, th, td, summary, figcaption, strong, small")) {
    const box = node.getBoundingClientRect();
    if (!visible(box)) continue;
    if (!node.closest(".scroll, pre") && box.right > innerWidth + 1) say("off the page", node);
    if (node.scrollWidth > node.clientWidth + 1 && node.clientWidth && getComputedStyle(node).display !== "inline")
      if (!node.closest(".scroll")) say("wider than its box", node);
  }
  for (const node of document.querySelectorAll(".scroll"))
    if (visible(node.getBoundingClientRect()) && node.scrollWidth > node.clientWidth + 1) say("cut columns", node);
  const cells = [...document.querySelectorAll("th, td")];
  for (const cell of cells)
    if (visible(cell.getBoundingClientRect()) && cell.scrollWidth > cell.clientWidth + 1) say("cut cell", cell);
  return found;
})()
"""

# Names, headings, table headers, keyboard reach, and contrast (WCAG 2.1 AA) of every visible text.
ACCESS = r"""
(() => {
  const found = [];
  const rgb = text => {
    const parts = text.match(/[\d.]+/g).map(Number);
    return parts.length > 3 ? parts : [...parts, 1];
  };
  const over = (top, under) => under.map((c, i) => i < 3 ? top[i] * top[3] + c * (1 - top[3]) : 1);
  const light = c => {
    const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const under = node => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(rgb(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), rgb(getComputedStyle(document.body).backgroundColor));
  };
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.textContent.trim() || !node.getClientRects().length) continue;
    if (node.closest("script, style, title, desc, .skip")) continue;
    const style = getComputedStyle(node), large = parseFloat(style.fontSize) >= 24;
    const ground = under(node), ink = over(rgb(node.closest("svg") ? style.fill : style.color), ground);
    const ratio = contrast(ink, ground);
    if (ratio < (large ? 3 : 4.5)) found.push(`contrast ${ratio.toFixed(2)}: ${text.textContent.trim().slice(0, 40)}`);
  }
  document.querySelectorAll("img").forEach(node => node.alt.trim() || found.push("picture without a text"));
  document.querySelectorAll("svg.plot").forEach(node => {
    const ids = (node.getAttribute("aria-labelledby") || "").split(" ");
    if (node.getAttribute("role") !== "img" || !ids.every(id => document.getElementById(id)?.textContent.trim()))
      found.push("figure without a text");
  });
  document.querySelectorAll("table").forEach(node => {
    if (!node.getAttribute("aria-label")) found.push("table without a name");
    node.querySelectorAll("thead th").forEach(head => head.scope === "col" || found.push("column header without scope"));
    node.querySelectorAll("tbody tr").forEach(row => row.cells[0].scope === "row" || found.push("row header without scope"));
  });
  for (const node of document.querySelectorAll("button, a, summary"))
    if (!node.textContent.trim()) found.push(`empty ${node.tagName}`);
  document.querySelectorAll(".scroll, pre").forEach(node => node.tabIndex === 0 || found.push("scrolls, but not by keyboard"));
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map(node => Number(node.tagName[1]));
  levels.forEach((level, i) => {
    if (i && level > levels[i - 1] + 1) found.push(`heading of level ${level} after ${levels[i - 1]}`);
  });
  if (levels.filter(level => level === 1).length !== 1) found.push("not one first heading");
  const ids = [...document.querySelectorAll("[id]")].map(node => node.id);
  if (new Set(ids).size !== ids.length) found.push("an id twice");
  if (!document.documentElement.lang || !document.title) found.push("page without language or title");
  for (const mark of ["main", "nav", "header", "footer"]) if (!document.querySelector(mark)) found.push(`no ${mark}`);
  return found;
})()
"""
