"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PER_PAGE = 48, SHOWN = 56;
  const by = (id) => document.getElementById(id);
  const total = data.widths.reduce((sum, width) => sum + width, 0);
  const block = new Uint16Array(total), unit = new Uint32Array(total), start = [];
  let at = 0;
  data.widths.forEach((width, b) => {
    start.push(at);
    for (let j = 0; j < width; j++, at++) { block[at] = b; unit[at] = j; }
  });
  const of = (b, j) => (data.dims ? `${b}:h${Math.floor(j / data.dims[b])}.${j % data.dims[b]}` : `${b}:${j}`);
  const name = (i) => of(block[i], unit[i]);
  const STATES = { 0: ["removed", "gone"], 1: ["kept", "kept"], 2: ["head kept, turned", "turned"] };
  let found = [], page = 0, here = -1;

  const made = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };

  data.widths.forEach((width, b) => {
    const carries = (data.blocks[b] || {}).carries;
    const option = made("option", carries === false ? `${b} (no class evidence)` : `${b}`);
    option.value = b;
    by("block").append(option);
  });
  [...new Set([...data.classes, ...(data.labels || [])])].sort().forEach((text) => {
    const option = made("option");
    option.value = text;
    by("classes").append(option);
  });
  const WHERE = { writes: ["writes", "classes"], fires: ["fires", "classes"], name: ["called", "named"], shows: ["shows", "labels"] };
  Object.keys(WHERE).forEach((one) => {
    if (!data[WHERE[one][0]]) by("which").querySelector(`[value=${one}]`).remove();
  });
  [...by("state").options].forEach((one) => { if (one.value && !data.kept.includes(one.value)) one.remove(); });
  if (by("which").options.length === 1) by("which").disabled = by("class").disabled = true;

  const lines = (i) => {
    const rows = [];
    if (data.writes) rows.push(["writes", data.writes[i] < 0 ? "not said" : data.classes[data.writes[i]]]);
    if (data.fires) rows.push(["fires for", data.fires[i] < 0 ? "–" : `${data.classes[data.fires[i]]} (${data.read})`]);
    if (data.called && data.called[i] >= 0) {
      const [score, control] = ["called_score", "called_control"].map((one) => (data[one] ? data[one][i] : null));
      const beside = control === null ? "" : `, other names ${(control / 100).toFixed(2)}`;
      rows.push(["name", data.named[data.called[i]] + (score === null ? "" : ` (correlation ${(score / 100).toFixed(2)}${beside})`)]);
    }
    if (data.shows && data.shows[i] >= 0) {
      const [iou, chance] = [data.shows_score[i], data.shows_control[i]].map((one) => (one / 100).toFixed(2));
      rows.push(["shows", `${data.labels[data.shows[i]]} (IoU ${iou}, ${chance} by chance)`]);
    }
    if (data.between && data.between[i] !== null) rows.push(["tells classes apart", `${data.between[i]} % of its variance`]);
    if (data.kept[i] === "1" && data.drift && data.drift[i] !== null) rows.push(["after the repair", `correlation ${(data.drift[i] / 100).toFixed(2)}`]);
    if (data.kept[i] === "0" && data.twin && data.twin[i] >= 0) {
      rows.push(["stand-in", `${block[i]}:${data.twin[i]}, correlation ${(data.twinned[i] / 100).toFixed(2)}`]);
    }
    return rows;
  };

  const picture = (n) => {
    const each = data.across * data.across, [file, cell] = data.sheets[Math.floor(n / each)], place = n % each;
    const scale = SHOWN / cell, element = made("i");
    element.style.backgroundImage = `url("${file}")`;
    element.style.backgroundSize = `${data.across * SHOWN}px auto`;
    element.style.backgroundPosition = `${-(place % data.across) * cell * scale}px ${-Math.floor(place / data.across) * cell * scale}px`;
    return element;
  };

  const card = (i) => {
    const item = made("li");
    item.tabIndex = 0;
    item.id = name(i);
    const head = made("div", undefined, "head"), [state, kind] = STATES[data.kept[i]];
    head.append(made("strong", name(i)), made("span", state, kind));
    item.append(head);
    const silent = data.silent && data.silent[i] === "1";
    if (silent) item.append(made("p", "never fires on these images"));
    else if (data.sheets) {
      const strip = made("div", undefined, "pictures");
      for (let k = 0; k < data.each; k++) {
        const n = data.images[i * data.each + k];
        if (n >= 0) strip.append(picture(n));
      }
      strip.setAttribute("role", "img");
      strip.setAttribute("aria-label", `the images that move unit ${name(i)} most`);
      item.append(strip);
    }
    const list = made("dl");
    lines(i).forEach(([label, value]) => list.append(made("dt", label), made("dd", value)));
    item.append(list);
    return item;
  };

  const draw = () => {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(card);
    by("units").replaceChildren(...shown);
    by("count").textContent = `${found.length.toLocaleString("en")} of ${total.toLocaleString("en")} ${data.dims ? "directions" : "units"}`;
    by("page").textContent = `${page + 1} of ${pages}`;
    by("before").disabled = page === 0;
    by("after").disabled = page >= pages - 1;
    here = -1;
  };

  const search = () => {
    const wanted = by("unit").value.trim(), text = by("class").value.trim().toLowerCase();
    const b = by("block").value, state = by("state").value, which = by("which").value;
    const WORDS = ["classes", "named", "labels"];
    const hits = Object.fromEntries(WORDS.map((words) => [words, new Set(
      (data[words] || []).flatMap((one, c) => (one.toLowerCase().includes(text) ? [c] : [])))]));
    const speaks = ([column, words], i) => Boolean(data[column]) && hits[words].has(data[column][i]);
    found = [];
    for (let i = 0; i < total; i++) {
      if (b !== "" && block[i] !== Number(b)) continue;
      if (state !== "" && data.kept[i] !== state) continue;
      if (wanted && !name(i).startsWith(wanted)) continue;
      if (text && !Object.keys(WHERE).some((one) => (which === "any" || which === one) && speaks(WHERE[one], i))) continue;
      found.push(i);
    }
    page = 0;
    draw();
  };

  const move = (step) => {
    const cards = [...by("units").children];
    if (!cards.length) return;
    here = Math.min(Math.max(cards.indexOf(document.activeElement) + step, 0), cards.length - 1);
    cards[here].focus();
  };

  const turn = (step) => { page += step; draw(); by("units").focus(); };

  const clear = () => {
    ["unit", "class", "block", "state"].forEach((id) => { by(id).value = ""; });
    by("which").value = "any";
    search();
  };

  const open = () => {
    const wanted = decodeURIComponent(location.hash.slice(1)), parts = /^(\d+):(?:h(\d+)\.)?(\d+)$/.exec(wanted);
    if (!parts || Boolean(parts[2]) !== Boolean(data.dims)) return;
    const b = Number(parts[1]), j = Number(parts[3]) + (data.dims ? Number(parts[2]) * data.dims[b] : 0);
    if (!(j < data.widths[b]) || of(b, j) !== wanted) return;
    clear();
    page = Math.floor((start[b] + j) / PER_PAGE);
    draw();
    const target = by(wanted);
    target.classList.add("here");
    target.scrollIntoView({ block: "center" });
    target.focus();
  };

  by("filters").addEventListener("input", search);
  by("filters").addEventListener("submit", (event) => event.preventDefault());
  by("clear").addEventListener("click", clear);
  by("before").addEventListener("click", () => turn(-1));
  by("after").addEventListener("click", () => turn(1));
  addEventListener("hashchange", open);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT)$/.test(document.activeElement.tagName);
    if (event.key === "Escape") { clear(); document.activeElement.blur(); }
    if (typing) return;
    if (event.key === "/") { event.preventDefault(); by("class").focus(); }
    if (event.key === "n") turn(1);
    if (event.key === "p") turn(-1);
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (steps[event.key]) { event.preventDefault(); move(steps[event.key]); }
  });
  search();
  open();
})();
