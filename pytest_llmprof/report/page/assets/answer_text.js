// An answer as a reader would see it, whatever is in it: only text nodes are made.

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
      found.push(
        h(
          "div",
          { class: "scroll" },
          h(
            "table",
            {},
            rows.map((row, index) =>
              h(
                "tr",
                {},
                row.map((cell) => h(index ? "td" : "th", {}, inlineMarkdown(cell.trim()))),
              ),
            ),
          ),
        ),
      );
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
    if (cell)
      cell.text = text
        .slice(from, until)
        .replace(/<[^>]*>/g, " ")
        .replace(/&(amp|lt|gt|quot|#39|nbsp);/g, (_, name) => ENTITIES[name])
        .trim();
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
  return h(
    "div",
    { class: "scroll", tabindex: "0" },
    h(
      "table",
      {},
      rows.map((row) =>
        h(
          "tr",
          {},
          row.map(({ name, colspan, rowspan, text: content }) => h(name, { colspan, rowspan }, content)),
        ),
      ),
    ),
  );
}

function span(attributes, name) {
  const found = new RegExp(`\\b${name}\\s*=\\s*["']?(\\d{1,2})`, "i").exec(attributes);
  return found && Number(found[1]) > 1 && Number(found[1]) <= 60 ? found[1] : null;
}
