// The pages of a test: image with boxes, answer, differences from the truth.

const ROW_HEIGHT = 34;
const ORDERS = {
  worst: ["Worst first", (answer) => -answer.place],
  page: ["By name", (answer) => answer.page],
  slow: ["Slowest first", (answer) => -(answer.total ?? 0)],
};

views.gallery = {
  title: ([index, page]) => page || `Gallery of ${testName(block("overview").rows[index] || { id: "", stage: "" }).name}`,
  render(root, [argument, page]) {
    const index = Number(argument);
    const row = block("overview").rows[index];
    if (!row || !row.gallery) {
      root.append(h("h1", {}, "There is no such gallery"), h("p", {}, h("a", { href: "#/" }, "All tests")));
      return;
    }
    const state = { answers: null, selected: page };
    const detail = h("div", { class: "page-detail" });
    const side = h("div", { class: "page-list" });
    root.append(
      h("p", { class: "crumbs" }, h("span", {}, h("a", { href: "#/" }, "All tests"), " / ", h("a", { href: `#/test/${index}` }, testName(row).name), " / gallery")),
      h("div", { class: "gallery" }, side, detail),
    );
    const left = { now: false };
    cleanups.push(() => (left.now = true));
    largeBlock(`answers-${index}`).then((answers) => {
      if (left.now) return;
      answers.forEach((answer, at) => (answer.place = -at));
      state.answers = answers;
      state.list = pageList(side, answers, (answer) => select(answer));
      select(answers.find((answer) => answer.page === page) || state.list.items()[0]);
    }).catch((error) => detail.replaceChildren(unreadable(error)));

    function select(answer) {
      if (!answer) return;
      state.selected = answer.page;
      history.replaceState(null, "", `#/gallery/${index}/${encodeURIComponent(answer.page)}`);
      state.list.select(answer);
      detail.replaceChildren(...pageDetail(answer, index));
    }

    const move = (step) => () => {
      if (!state.list) return;
      const items = state.list.items();
      const at = items.findIndex((answer) => answer.page === state.selected);
      select(items[Math.max(0, Math.min(items.length - 1, at + step))]);
    };
    return {
      up: `#/test/${index}`,
      keys: { j: move(1), k: move(-1), ArrowDown: move(1), ArrowUp: move(-1), ArrowRight: move(1), ArrowLeft: move(-1) },
    };
  },
};

/** The list of pages; only the rows in sight are there. */
function pageList(side, answers, choose) {
  let shown = [];
  let chosen = null;
  let order = "worst";
  const rows = h("div", { class: "virtual-rows" });
  const scroller = h("div", { class: "virtual", role: "listbox", "aria-label": "Pages", tabindex: "0" }, rows);
  const search = h("input", { type: "search", "aria-label": "Search pages", placeholder: "Search pages and text (/)", "data-search": true });
  const sort = h("select", { "aria-label": "Order of the pages" }, Object.entries(ORDERS).map(([key, [label]]) => h("option", { value: key }, label)));
  const counted = h("p", { class: "muted small", role: "status" });
  side.append(search, sort, counted, scroller);
  scroller.addEventListener("scroll", draw, { passive: true });
  search.addEventListener("input", debounced(update));
  sort.addEventListener("change", () => ((order = sort.value), update()));

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = answers.filter((answer) => words.every((word) => answer.page.toLowerCase().includes(word) || answer.raw.toLowerCase().includes(word)));
    shown = sortedBy(found, ORDERS[order][1], 1);
    counted.textContent = `${shown.length === answers.length ? count(answers.length, "page") : `${shown.length} of ${count(answers.length, "page")}`}`;
    scroller.scrollTop = 0;
    draw();
  }

  function draw() {
    rows.style.height = `${shown.length * ROW_HEIGHT}px`;
    const first = Math.max(0, Math.floor(scroller.scrollTop / ROW_HEIGHT) - 5);
    const last = Math.min(shown.length, first + Math.ceil((scroller.clientHeight || 600) / ROW_HEIGHT) + 10);
    rows.replaceChildren(
      ...shown.slice(first, last).map((answer, at) =>
        h(
          "div",
          {
            class: "virtual-row",
            role: "option",
            "aria-selected": String(answer === chosen),
            "aria-posinset": first + at + 1,
            "aria-setsize": shown.length,
            style: { top: `${(first + at) * ROW_HEIGHT}px` },
            onclick: () => choose(answer),
          },
          h("span", { class: "name" }, h("bdi", {}, answer.page)),
          pageMark(answer),
        ),
      ),
    );
  }

  update();
  return {
    items: () => shown,
    select(answer) {
      chosen = answer;
      const at = shown.indexOf(answer);
      const top = at * ROW_HEIGHT;
      if (at >= 0 && (top < scroller.scrollTop || top + ROW_HEIGHT > scroller.scrollTop + scroller.clientHeight))
        scroller.scrollTop = Math.max(0, top - scroller.clientHeight / 2);
      draw();
    },
  };
}

function pageMark(answer) {
  if (answer.status !== "ok") return h("span", { class: "bad" }, "✕ failed");
  if (answer.runaway) return h("span", { class: "warn" }, "↻ loop");
  return h("span", { class: "muted number" }, answer.cer === null || answer.cer === undefined ? "" : percent(answer.cer));
}

function pageDetail(answer, index) {
  const facts = [
    ["CER", answer.cer, percent],
    ["WER", answer.wer, percent],
    ["box IoU", answer.iou, number],
    ["repeated", answer.repetition, percent],
    ["tokens", answer.tokens, number],
    ["time", answer.total, (value) => `${number(value)} ms`],
  ].filter(([, value]) => value !== null && value !== undefined);
  const ended = { eos: "ended by itself", length: "reached the longest length" }[answer.finish];
  return [
    h("h1", {}, h("bdi", {}, answer.page)),
    h("p", { class: "muted" }, facts.map(([name, value, format], at) => `${at ? " · " : ""}${name} ${format(value)}`), ended ? ` · ${ended}` : null),
    answer.error ? h("div", { class: "box bad" }, h("p", {}, answer.error)) : null,
    answer.runaway ? h("div", { class: "box warn" }, h("p", {}, "The answer ended in a loop of repeated text.")) : null,
    answer.cut ? h("p", { class: "notice" }, `The page has the first ${number(answer.raw.length)} of ${number(answer.cut)} characters; predictions.jsonl or the gallery's info.json has all.`) : null,
    h("div", { class: "answer" }, pageImage(answer), pageTexts(answer)),
    pageDifferences(answer),
  ].filter(Boolean);
}

// -- the image with its boxes

const BOX_COLOURS = ["blue", "vermilion", "green", "purple", "orange", "sky", "grey", "yellow"];

function pageImage(answer) {
  if (!answer.image) return h("p", { class: "muted" }, "There is no image: the gallery is off or could not read it (output.visualization.enable).");
  const [width, height] = answer.size;
  const boxes = answer.boxes || [];
  const labels = [...new Set(boxes.map(([label]) => label))];
  const paint = (label) => BOX_COLOURS[labels.indexOf(label) % BOX_COLOURS.length];
  const tip = h("div", { class: "tip", hidden: true });
  const overlay = s("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "group", "aria-label": "Boxes of the answer" });
  const groups = new Map();
  // Large boxes first, so that a small one inside another can be pointed at.
  const ordered = boxes.map((box, at) => ({ box, at })).sort((a, b) => area(b.box) - area(a.box));
  for (const { box } of ordered) {
    const [label, x1, y1, x2, y2, text] = box;
    const rect = s("rect", { x: x1, y: y1, width: Math.max(1, x2 - x1), height: Math.max(1, y2 - y1), class: `box-${paint(label)}`, tabindex: "0", role: "img", "aria-label": text ? `${label}: ${text}` : label, "vector-effect": "non-scaling-stroke" });
    const showTip = () => {
      tip.replaceChildren(h("strong", {}, label), text ? h("span", {}, h("bdi", {}, ` ${text}`)) : "");
      tip.hidden = false;
      tip.style.left = `${(100 * Math.min(x1, 0.6 * width)) / width}%`;
      tip.style.top = `${Math.min(96, (100 * y2) / height)}%`;
    };
    const hideTip = () => (tip.hidden = true);
    rect.addEventListener("mouseenter", showTip);
    rect.addEventListener("focus", showTip);
    rect.addEventListener("mouseleave", hideTip);
    rect.addEventListener("blur", hideTip);
    if (!groups.has(label)) groups.set(label, s("g", {}));
    groups.get(label).append(rect);
  }
  overlay.append(...groups.values());
  const toggles = labels.map((label) =>
    h(
      "label",
      {},
      h("input", { type: "checkbox", checked: true, onchange: (event) => groups.get(label).classList.toggle("off", !event.target.checked) }),
      h("span", { class: `swatch phase-${paint(label)}` }),
      `${label} (${boxes.filter(([one]) => one === label).length})`,
    ),
  );
  const image = h("img", { src: fileUrl(answer.image), alt: `The page ${answer.page}`, width, height, loading: "lazy", decoding: "async" });
  return h("figure", { class: "page-image" }, toggles.length ? h("div", { class: "toggles" }, toggles) : null, h("div", { class: "overlay" }, image, overlay, tip));
}

function area([, x1, y1, x2, y2]) {
  return (x2 - x1) * (y2 - y1);
}

// -- the text: rendered beside raw

const REFERENCES = /<\|ref\|>[\s\S]*?<\|\/ref\|>(<\|det\|>[\s\S]*?<\|\/det\|>)?\n?/g;
const SPECIAL = /<[|｜][^<>|｜\n]{1,60}[|｜]>/g;

function pageTexts(answer) {
  const plain = answer.scored ?? (answer.clean ?? answer.raw).replace(REFERENCES, "").replace(SPECIAL, "");
  const rendered = h("div", { class: "rendered", dir: "auto" });
  rendered.append(...renderMarkdown(plain));
  const raw = h("pre", { class: "raw", dir: "auto", tabindex: "0" }, answer.raw);
  return h("div", { class: "texts" }, h("div", {}, h("h2", {}, "Rendered"), rendered), h("div", {}, h("h2", {}, "Raw"), raw));
}

/** Markdown and HTML tables as elements, made of text nodes alone: links and images are shown as their text. */
function renderMarkdown(text) {
  const found = [];
  const lines = text.split("\n");
  let at = 0;
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) found.push(h("p", {}, inlineMarkdown(paragraph.join("\n"))));
    paragraph = [];
  };
  while (at < lines.length) {
    const line = lines[at];
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    const item = /^\s*([-*+]|\d{1,4}[.)])\s+(.*)$/.exec(line);
    if (/<table[\s>]/i.test(line)) {
      flush();
      let end = at;
      while (end < lines.length - 1 && !/<\/table>/i.test(lines[end])) end += 1;
      found.push(htmlTable(lines.slice(at, end + 1).join("\n")));
      at = end;
    } else if (/^\s*\|.*\|\s*$/.test(line) && /^\s*\|?[\s:|-]+\|[\s:|-]*$/.test(lines[at + 1] || "")) {
      flush();
      let end = at + 2;
      while (end < lines.length && /^\s*\|.*\|\s*$/.test(lines[end])) end += 1;
      const rows = [line, ...lines.slice(at + 2, end)].map((row) => row.trim().slice(1, -1).split("|"));
      found.push(h("div", { class: "scroll" }, h("table", {}, rows.map((row, index) => h("tr", {}, row.map((cell) => h(index ? "td" : "th", {}, inlineMarkdown(cell.trim()))))))));
      at = end - 1;
    } else if (/^\s*```/.test(line)) {
      flush();
      let end = at + 1;
      while (end < lines.length && !/^\s*```/.test(lines[end])) end += 1;
      found.push(h("pre", {}, lines.slice(at + 1, end).join("\n")));
      at = end;
    } else if (heading) {
      flush();
      found.push(h("p", { class: `heading level-${heading[1].length}` }, inlineMarkdown(heading[2])));
    } else if (item) {
      flush();
      found.push(h("p", { class: "item" }, `${/\d/.test(item[1]) ? item[1] : "•"} `, inlineMarkdown(item[2])));
    } else if (!line.trim()) flush();
    else paragraph.push(line);
    at += 1;
  }
  flush();
  return found;
}

function inlineMarkdown(text) {
  const parts = [];
  const pattern = /\*\*([^*\n]+)\*\*|`([^`\n]+)`|!?\[([^\]\n]*)\]\([^)\n]*\)|\n/g;
  let last = 0;
  for (const match of text.matchAll(pattern)) {
    parts.push(text.slice(last, match.index));
    if (match[1] !== undefined) parts.push(h("strong", {}, match[1]));
    else if (match[2] !== undefined) parts.push(h("code", {}, match[2]));
    else if (match[3] !== undefined) parts.push(match[3]);
    else parts.push(h("br"));
    last = match.index + match[0].length;
  }
  parts.push(text.slice(last));
  return parts;
}

const TABLE_TAG = /<(\/?)(table|thead|tbody|tfoot|tr|td|th)\b([^>]*)>/gi;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'", nbsp: " " };

/** An HTML table of an answer. No browser parses it: only the cells' texts and spans are taken, other tags left out. */
function htmlTable(text) {
  const rows = [];
  let cell = null;
  let from = 0;
  const close = (until) => {
    if (cell) cell.text = text.slice(from, until).replace(/<[^>]*>/g, " ").replace(/&(amp|lt|gt|quot|#39|nbsp);/g, (_, name) => ENTITIES[name]).trim();
    cell = null;
  };
  for (const match of text.slice(0, 50000).matchAll(TABLE_TAG)) {
    close(match.index);
    const name = match[2].toLowerCase();
    if (match[1]) continue;
    if (name === "tr" && rows.length < 500) rows.push([]);
    else if ((name === "td" || name === "th") && rows.length && rows[rows.length - 1].length < 60) {
      cell = { name, colspan: span(match[3], "colspan"), rowspan: span(match[3], "rowspan"), text: "" };
      rows[rows.length - 1].push(cell);
      from = match.index + match[0].length;
    }
  }
  close(Math.min(text.length, 50000));
  if (!rows.some((row) => row.length)) return h("p", {}, text);
  return h("div", { class: "scroll", tabindex: "0" }, h("table", {}, rows.map((row) => h("tr", {}, row.map(({ name, colspan, rowspan, text: content }) => h(name, { colspan, rowspan }, content))))));
}

function span(attributes, name) {
  const found = new RegExp(`\\b${name}\\s*=\\s*["']?(\\d{1,2})`, "i").exec(attributes);
  return found && Number(found[1]) > 1 && Number(found[1]) <= 60 ? found[1] : null;
}

// -- differences

function pageDifferences(answer) {
  if (answer.truth === null || answer.truth === undefined || answer.scored === null || answer.scored === undefined) return null;
  const parts = differences(answer.truth, answer.scored);
  const legend = h("p", { class: "muted small" }, h("del", {}, "only in the truth"), " ", h("ins", {}, "only in the answer"), " White space and heading marks do not count.");
  const same = parts && parts.every((part) => part.kind === "same");
  return section(
    "Against the truth",
    same ? h("p", {}, "No differences.") : parts ? [legend, diffText(parts)] : [h("p", {}, "The texts are too different to be aligned: both as they are."), h("div", { class: "texts" }, h("pre", { class: "raw", dir: "auto" }, answer.truth), h("pre", { class: "raw", dir: "auto" }, answer.scored))],
  );
}

/** Two texts in parts {kind: "same" | "removed" | "added", text}, or null where they differ too much. */
function differences(before, after) {
  const a = wordsOf(before);
  const b = wordsOf(after);
  const steps = alignment(a.map((one) => one.word), b.map((one) => one.word));
  if (!steps) return null;
  const parts = [];
  const add = (kind, text) => {
    if (!text) return;
    const last = parts[parts.length - 1];
    if (last && last.kind === kind) last.text += text;
    else parts.push({ kind, text });
  };
  let removed = [];
  let added = [];
  const flush = () => {
    // Words in the place of others are compared letter by letter, one by one.
    const pairs = Math.min(removed.length, added.length);
    for (let at = 0; at < pairs; at += 1) {
      for (const [kind, letters] of letterParts(removed[at].word, added[at].word)) add(kind, letters);
      add("same", removed[at].space);
    }
    for (const one of removed.slice(pairs)) add("removed", one.word + one.space);
    for (const one of added.slice(pairs)) add("added", one.word + one.space);
    removed = [];
    added = [];
  };
  let i = 0;
  let j = 0;
  for (const step of steps) {
    if (step === "=") {
      flush();
      add("same", a[i].word + (a[i].space || b[j].space));
      i += 1;
      j += 1;
    } else if (step === "-") removed.push(a[i++]);
    else added.push(b[j++]);
  }
  flush();
  return parts;
}

/** Words with the white space behind them: a line break or a space. Marks of headings are left out. */
function wordsOf(text) {
  const found = [];
  for (const match of text.replace(/^\s*#{1,6}\s+/gm, "").matchAll(/(\S+)(\s*)/g)) {
    found.push({ word: match[1], space: match[2].includes("\n") ? "\n" : match[2] ? " " : "" });
    if (found.length >= 8000) break;
  }
  return found;
}

function letterParts(before, after) {
  const a = [...before];
  const b = [...after];
  const steps = a.length + b.length <= 200 ? alignment(a, b) : null;
  const equal = steps ? steps.filter((step) => step === "=").length : 0;
  if (!steps || equal * 3 < Math.max(a.length, b.length)) return [["removed", before], ["added", after]];
  const parts = [];
  let i = 0;
  let j = 0;
  for (const step of steps) {
    if (step === "=") parts.push(["same", a[i++]]), (j += 1);
    else if (step === "-") parts.push(["removed", a[i++]]);
    else parts.push(["added", b[j++]]);
  }
  return parts;
}

const MOST_EDITS = 1200;

/** The shortest way from *a* to *b* as "=", "-" and "+" (Myers, "An O(ND) Difference Algorithm", 1986); null where it is
 * longer than MOST_EDITS. */
function alignment(a, b) {
  let begin = 0;
  while (begin < a.length && begin < b.length && a[begin] === b[begin]) begin += 1;
  let tail = 0;
  while (tail < a.length - begin && tail < b.length - begin && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail += 1;
  const n = a.length - begin - tail;
  const m = b.length - begin - tail;
  const most = Math.min(n + m, MOST_EDITS);
  const offset = most + 1;
  const reach = new Int32Array(2 * offset + 1);
  const trace = [];
  let edits = -1;
  search: for (let d = 0; d <= most; d += 1) {
    trace.push(reach.slice(offset - d - 1, offset + d + 2));
    for (let k = -d; k <= d; k += 2) {
      let x = k === -d || (k !== d && reach[offset + k - 1] < reach[offset + k + 1]) ? reach[offset + k + 1] : reach[offset + k - 1] + 1;
      let y = x - k;
      while (x < n && y < m && a[begin + x] === b[begin + y]) {
        x += 1;
        y += 1;
      }
      reach[offset + k] = x;
      if (x >= n && y >= m) {
        edits = d;
        break search;
      }
    }
  }
  if (edits < 0) return null;
  const back = [];
  let x = n;
  let y = m;
  for (let d = edits; d > 0; d -= 1) {
    const known = trace[d];
    const at = (k) => known[k + d + 1];
    const k = x - y;
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const from = down ? k + 1 : k - 1;
    const startX = at(from);
    const startY = startX - from;
    while (x > startX + (down ? 0 : 1) && y > startY + (down ? 1 : 0)) {
      back.push("=");
      x -= 1;
      y -= 1;
    }
    back.push(down ? "+" : "-");
    x = startX;
    y = startY;
  }
  for (; x > 0; x -= 1) back.push("=");
  return [...Array(begin).fill("="), ...back.reverse(), ...Array(tail).fill("=")];
}

function diffText(parts) {
  return h(
    "div",
    { class: "diff", dir: "auto" },
    parts.map((part) => h(part.kind === "same" ? "span" : part.kind === "removed" ? "del" : "ins", {}, part.text)),
  );
}
