// The pages of a test: image with boxes, answer, differences from the truth.

const ROW_HEIGHT = 34;
const ORDERS = {
  worst: ["Worst first", (answer) => answer.place],
  page: ["By name", (answer) => answer.page],
  slow: ["Slowest first", (answer) => -(answer.total ?? 0)],
};

views.gallery = {
  title: ([index, page]) =>
    page || `Gallery of ${testName(block("overview").rows[index] || { id: "", stage: "" }).name}`,
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
      h(
        "p",
        { class: "crumbs" },
        h(
          "span",
          {},
          h("a", { href: "#/" }, "All tests"),
          " / ",
          h("a", { href: `#/test/${index}` }, testName(row).name),
          " / gallery",
        ),
      ),
      h("div", { class: "gallery" }, side, detail),
    );
    const left = { now: false };
    cleanups.push(() => (left.now = true));
    largeBlock(`answers-${index}`)
      .then((answers) => {
        if (left.now) return;
        answers.forEach((answer, at) => (answer.place = at));
        state.answers = answers;
        state.list = pageList(side, answers, (answer) => select(answer));
        select(answers.find((answer) => answer.page === page) || state.list.items()[0]);
      })
      .catch((error) => detail.replaceChildren(unreadable(error)));

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
      keys: {
        j: move(1),
        k: move(-1),
        ArrowDown: move(1),
        ArrowUp: move(-1),
        ArrowRight: move(1),
        ArrowLeft: move(-1),
      },
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
  const search = h("input", {
    type: "search",
    "aria-label": "Search pages",
    placeholder: "Search pages and text (/)",
    "data-search": true,
  });
  const sort = h(
    "select",
    { "aria-label": "Order of the pages" },
    Object.entries(ORDERS).map(([key, [label]]) => h("option", { value: key }, label)),
  );
  const counted = h("p", { class: "muted small", role: "status" });
  side.append(search, sort, counted, scroller);
  scroller.addEventListener("scroll", draw, { passive: true });
  search.addEventListener("input", debounced(update));
  sort.addEventListener("change", () => ((order = sort.value), update()));

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = answers.filter((answer) =>
      words.every((word) => answer.page.toLowerCase().includes(word) || answer.raw.toLowerCase().includes(word)),
    );
    shown = sortedBy(found, ORDERS[order][1], 1);
    const all = count(answers.length, "page");
    const mark = answers.some((answer) => typeof answer.cer === "number") ? ", CER" : "";
    counted.textContent = (shown.length === answers.length ? all : `${shown.length} of ${all}`) + mark;
    scroller.scrollTop = 0;
    draw();
  }

  function draw() {
    const place = shown.indexOf(chosen);
    if (place >= 0) scroller.setAttribute("aria-activedescendant", `page-option-${place}`);
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
            id: `page-option-${first + at}`,
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
  return h(
    "span",
    { class: "muted number" },
    answer.cer === null || answer.cer === undefined ? "" : number(answer.cer),
  );
}

function pageDetail(answer, index) {
  const facts = [
    ["CER", answer.cer, number],
    ["WER", answer.wer, number],
    ["box IoU", answer.iou, number],
    ["repetition", answer.repetition, number],
    ["tokens", answer.tokens, integer],
    ["first round", answer.total, (value) => `${number(value)} ms`],
  ].filter(([, value]) => value !== null && value !== undefined);
  const ended = { eos: "ended by itself", length: "cut at max_new_tokens" }[answer.finish];
  return [
    h("h1", {}, h("bdi", {}, answer.page)),
    h(
      "p",
      { class: "muted" },
      facts.map(([name, value, format], at) => `${at ? " · " : ""}${name} ${format(value)}`),
      ended ? ` · ${ended}` : null,
    ),
    answer.error ? h("div", { class: "box bad" }, h("p", {}, answer.error)) : null,
    answer.runaway ? h("div", { class: "box warn" }, h("p", {}, "The answer ended in a loop of repeated text.")) : null,
    answer.cut
      ? h(
          "p",
          { class: "notice" },
          `The page has the first ${integer(answer.raw.length)} of ${integer(answer.cut)} characters; `,
          "predictions.jsonl or the gallery's info.json has all.",
        )
      : null,
    h("div", { class: "answer" }, pageImage(answer), pageTexts(answer)),
    pageDifferences(answer),
  ].filter(Boolean);
}

// -- the image with its boxes

const BOX_COLOURS = ["blue", "vermilion", "green", "purple", "orange", "sky", "grey", "yellow"];

function pageImage(answer) {
  if (!answer.image)
    return h(
      "p",
      { class: "muted" },
      "There is no image: the gallery is off or could not read it (output.visualization.enable).",
    );
  const [width, height] = answer.size;
  const boxes = answer.boxes || [];
  const labels = [...new Set(boxes.map(([label]) => label))];
  const paint = (label) => BOX_COLOURS[labels.indexOf(label) % BOX_COLOURS.length];
  const tip = h("div", { class: "tip", hidden: true });
  const overlay = s("svg", {
    viewBox: `0 0 ${width} ${height}`,
    preserveAspectRatio: "none",
    role: "group",
    "aria-label": "Boxes of the answer",
  });
  const groups = new Map();
  // Large boxes first, so that a small one inside another can be pointed at.
  const ordered = boxes.map((box, at) => ({ box, at })).sort((a, b) => area(b.box) - area(a.box));
  for (const { box } of ordered) {
    const [label, x1, y1, x2, y2, text] = box;
    const rect = s("rect", {
      x: x1,
      y: y1,
      width: Math.max(1, x2 - x1),
      height: Math.max(1, y2 - y1),
      class: `box-${paint(label)}`,
      tabindex: "0",
      role: "img",
      "aria-label": text ? `${label}: ${text}` : label,
      "vector-effect": "non-scaling-stroke",
    });
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
      h("input", {
        type: "checkbox",
        checked: true,
        onchange: (event) => groups.get(label).classList.toggle("off", !event.target.checked),
      }),
      h("span", { class: `swatch phase-${paint(label)}` }),
      `${label} (${boxes.filter(([one]) => one === label).length})`,
    ),
  );
  const image = h("img", {
    src: fileUrl(answer.image),
    alt: `The page ${answer.page}`,
    width,
    height,
    loading: "lazy",
    decoding: "async",
  });
  return h(
    "figure",
    { class: "page-image" },
    toggles.length ? h("div", { class: "toggles" }, toggles) : null,
    h("div", { class: "overlay" }, image, overlay, tip),
  );
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
  return h(
    "div",
    { class: "texts" },
    h("div", {}, h("h2", {}, "Rendered"), rendered),
    h("div", {}, h("h2", {}, "Raw"), raw),
  );
}

// -- differences

function pageDifferences(answer) {
  if (answer.truth === null || answer.truth === undefined || answer.scored === null || answer.scored === undefined)
    return null;
  const parts = differences(answer.truth, answer.scored);
  const legend = h(
    "p",
    { class: "muted small" },
    h("del", {}, "only in the truth"),
    " ",
    h("ins", {}, "only in the answer"),
    " White space and heading marks do not count.",
  );
  const same = parts && parts.every((part) => part.kind === "same");
  return section(
    "Against the truth",
    same
      ? h("p", {}, "No differences.")
      : parts
        ? [legend, diffText(parts)]
        : [
            h("p", {}, "The texts are too different to be aligned: both as they are."),
            h(
              "div",
              { class: "texts" },
              h("pre", { class: "raw", dir: "auto" }, answer.truth),
              h("pre", { class: "raw", dir: "auto" }, answer.scored),
            ),
          ],
  );
}
