// What differs between two texts: words first, then the letters of words in each other's place.

/** Two texts in parts {kind: "same" | "removed" | "added", text}, or null where they differ too much. */
function differences(before, after) {
  const a = wordsOf(before);
  const b = wordsOf(after);
  const steps = alignment(
    a.map((one) => one.word),
    b.map((one) => one.word),
  );
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
  if (!steps || equal * 3 < Math.max(a.length, b.length))
    return [
      ["removed", before],
      ["added", after],
    ];
  const parts = [];
  let i = 0;
  let j = 0;
  for (const step of steps) {
    if (step === "=") (parts.push(["same", a[i++]]), (j += 1));
    else if (step === "-") parts.push(["removed", a[i++]]);
    else parts.push(["added", b[j++]]);
  }
  return parts;
}

const MOST_EDITS = 1200;

/**
 * The shortest way from *a* to *b* as "=", "-" and "+" (Myers, "An O(ND) Difference Algorithm", 1986); null where it
 * is longer than MOST_EDITS.
 */
function alignment(a, b) {
  let begin = 0;
  while (begin < a.length && begin < b.length && a[begin] === b[begin]) begin += 1;
  let tail = 0;
  while (tail < a.length - begin && tail < b.length - begin && a[a.length - 1 - tail] === b[b.length - 1 - tail])
    tail += 1;
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
      let x =
        k === -d || (k !== d && reach[offset + k - 1] < reach[offset + k + 1])
          ? reach[offset + k + 1]
          : reach[offset + k - 1] + 1;
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
