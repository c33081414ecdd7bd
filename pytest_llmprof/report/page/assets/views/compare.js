// The run against a baseline.

const VERDICTS = {
  slower: ["▲", "bad"],
  worse: ["▲", "bad"],
  changed: ["◆", "warn"],
  faster: ["▼", "good"],
  better: ["▼", "good"],
  same: ["=", "quiet"],
  unclear: ["?", "warn"],
  "not measured": ["–", "quiet"],
};

/** Verdicts by their weight, as in summary.md. */
const WEIGHT = ["slower", "worse", "faster", "unclear", "not measured", "better", "changed", "same"];

views.compare = {
  title: () => "Comparison",
  render(root) {
    const comparison = block("comparison");
    if (!comparison) {
      root.append(
        h("h1", {}, "There is no comparison"),
        h("p", {}, "Make the page with one: ", h("code", {}, "llmprof report RUN --baseline RUN")),
      );
      return;
    }
    root.append(
      ...[
        compareHead(comparison),
        compareRows(comparison),
        compareKernels(comparison),
        compareTexts(comparison),
      ].filter(Boolean),
    );
    return { up: "#/" };
  },
};

function compareHead(comparison) {
  const changes = (dirty) => (dirty ? " with changes" : dirty === null ? ", local changes not known" : "");
  const side = ({ name, runs, machine, commit, dirty }) =>
    [name, count(runs, "run"), machine, commit ? `commit ${commit.slice(0, 12)}${changes(dirty)}` : null]
      .filter(Boolean)
      .join(", ");
  const missing = [
    ...comparison.only_before.map((name) => `Only before: ${name}`),
    ...comparison.only_after.map((name) => `Only after: ${name}`),
  ];
  const notes = [
    ...comparison.notices,
    ...notMeasured(comparison.reasons).slice(0, 12),
    ...missing.slice(0, 12),
    ...(missing.length > 12 ? [`and ${missing.length - 12} more tests on one side only`] : []),
  ];
  return h(
    "div",
    { class: "verdict" },
    h("h1", {}, "Against ", shortName(comparison.before.name)),
    h(
      "dl",
      { class: "facts" },
      h("dt", {}, "Before"),
      h("dd", {}, side(comparison.before)),
      h("dt", {}, "After"),
      h("dd", {}, side(comparison.after)),
    ),
    notes.length
      ? h(
          "ul",
          { class: "remarks muted" },
          notes.map((note) => h("li", {}, note)),
        )
      : null,
  );
}

/** Why tests were not measured, equal reasons together. */
function notMeasured(reasons) {
  const tests = new Map();
  for (const [test, why] of Object.entries(reasons)) tests.set(why, [...(tests.get(why) || []), test]);
  return [...tests].map(([why, [first, ...more]]) => {
    const others = more.length ? ` and ${count(more.length, "more test", "more tests")}` : "";
    return `Not measured: ${first}${others}: ${why}`;
  });
}

function verdictBadge(verdict) {
  const [sign, kind] = VERDICTS[verdict] || ["?", "quiet"];
  return h("span", { class: `badge ${kind}` }, h("span", { "aria-hidden": "true" }, sign), ` ${verdict}`);
}

/** The interval of a ratio on a scale around 1; the margin is shaded. */
function intervalChart(row, margin, reach) {
  if (row.ratio === null || row.low === null) return "";
  const place = (ratio) => 60 + 58 * Math.max(-1, Math.min(1, Math.log(ratio) / reach));
  const low = place(row.low ?? row.ratio);
  const high = place(row.high ?? row.ratio);
  const kind = (VERDICTS[row.verdict] || [])[1] || "quiet";
  return s(
    "svg",
    {
      class: `interval ${kind}`,
      viewBox: "0 0 120 18",
      width: 120,
      height: 18,
      role: "img",
      "aria-label": intervalText(row) || change(row.ratio),
    },
    s("rect", {
      class: "margin",
      x: place(1 - margin),
      y: 0,
      width: Math.max(1, place(1 + margin) - place(1 - margin)),
      height: 18,
    }),
    s("line", { class: "one", x1: 60, x2: 60, y1: 0, y2: 18 }),
    s("line", { class: "range", x1: low, x2: Math.max(high, low + 1), y1: 9, y2: 9 }),
    s("circle", { cx: place(row.ratio), cy: 9, r: 3.5 }),
  );
}

function intervalText(row) {
  return row.low === null || row.high === null ? "" : changeRange(row.low, row.high);
}

/** The columns of a metric before and after. */
function changeColumns(comparison) {
  // Intervals share a scale, as wide as the widest of them, but no wider than a factor of three.
  const sizes = comparison.rows.flatMap((row) => [row.low, row.high, row.ratio]).filter((ratio) => ratio > 0);
  const widest = largest(sizes.map((ratio) => Math.abs(Math.log(ratio))));
  const reach = Math.min(Math.log(3), Math.max(3 * Math.log(1 + comparison.margin), widest));
  return [
    { title: "Metric", value: (row) => row.title, cell: (row) => row.title },
    {
      title: "Verdict",
      value: (row) => WEIGHT.indexOf(row.verdict),
      cell: (row) => [
        verdictBadge(row.verdict),
        row.failed
          ? h("small", { class: "broken" }, ` outside ${row.limit}`)
          : row.limit !== null
            ? h("small", {}, ` limit ${row.limit}`)
            : null,
      ],
    },
    { title: "Before", number: true, value: (row) => row.before, cell: (row) => number(row.before) },
    { title: "After", number: true, value: (row) => row.after, cell: (row) => number(row.after) },
    { title: "Change", number: true, value: (row) => row.ratio, cell: (row) => change(row.ratio) },
    {
      title: "Interval",
      value: (row) => row.low,
      hint: "Confidence interval of the ratio; the shaded part is the margin",
      cell: (row) =>
        h(
          "span",
          { class: "interval-cell" },
          intervalChart(row, comparison.margin, reach),
          h("small", {}, intervalText(row)),
        ),
    },
    {
      title: "Note",
      value: (row) => row.note,
      cell: (row) => {
        const own = row.note === comparison.reasons[row.test] ? "" : row.note;
        return h("small", { class: "note" }, [own, row.how === "exact" ? "" : row.how].filter(Boolean).join("; "));
      },
    },
  ];
}

/** A test's metrics against the baseline, for its own view; nothing where it was not compared. */
function comparisonOf(test) {
  const comparison = block("comparison");
  const rows = comparison ? comparison.rows.filter((row) => row.test === test && isShown(row)) : [];
  if (!rows.length) return null;
  const why = comparison.reasons[test];
  return section(
    `Against ${shortName(comparison.before.name)}`,
    why ? h("p", { class: "muted" }, `Not measured: ${why}`) : null,
    sortableTable(changeColumns(comparison), rows, { caption: "Metrics before and after" }).element,
    h("p", {}, h("a", { href: "#/compare" }, "The whole comparison")),
  );
}

/** The weightiest verdict of each test, by its id. */
function verdictsByTest(comparison) {
  const found = new Map();
  for (const row of comparison.rows) {
    if (!isShown(row)) continue;
    const known = found.get(row.test);
    if (known === undefined || WEIGHT.indexOf(row.verdict) < WEIGHT.indexOf(known)) found.set(row.test, row.verdict);
  }
  return found;
}

/** A run's directory without those above it; a saved run's name as it is. */
function shortName(name) {
  return name.replace(/\/+$/, "").split("/").pop();
}

const QUIET = ["same", "unclear", "not measured"];
const isShown = (row) => row.shown || row.limit !== null || !QUIET.includes(row.verdict);

function compareRows(comparison) {
  if (!comparison.rows.length) return null;
  const state = { what: "shown", verdict: "" };
  const kinds = {
    shown: ["Main metrics and changes", isShown],
    changes: ["Changes alone", (row) => !QUIET.includes(row.verdict)],
    gates: ["Gated metrics", (row) => row.limit !== null],
    all: ["All metrics", () => true],
  };
  const overview = block("overview");
  const indexes = new Map(overview.rows.map((row, index) => [row.id, index]));
  const holder = h("div", { class: "tall" });
  const kept = () =>
    comparison.rows.filter((row) => kinds[state.what][1](row) && (!state.verdict || row.verdict === state.verdict));
  const columns = [
    {
      title: "Test",
      value: (row) => row.test,
      cell: (row) =>
        indexes.has(row.test)
          ? h(
              "a",
              { href: `#/test/${indexes.get(row.test)}`, "data-item": true },
              nameWithStage(overview, overview.rows[indexes.get(row.test)]),
            )
          : row.test,
    },
    ...changeColumns(comparison),
  ];
  const table = sortableTable(columns, kept(), { caption: "Metrics before and after" });
  holder.append(table.element);
  const update = () => table.setItems(kept());
  const verdicts = [...new Set(comparison.rows.map((row) => row.verdict))];
  return h(
    "section",
    {},
    h("h2", {}, "Metrics"),
    h(
      "div",
      { class: "toolbar" },
      h(
        "select",
        { "aria-label": "Which metrics", onchange: (event) => ((state.what = event.target.value), update()) },
        Object.entries(kinds).map(([key, [label]]) => h("option", { value: key }, label)),
      ),
      h(
        "select",
        { "aria-label": "Verdict", onchange: (event) => ((state.verdict = event.target.value), update()) },
        h("option", { value: "" }, "All verdicts"),
        verdicts.map((verdict) => h("option", { value: verdict }, verdict)),
      ),
    ),
    holder,
  );
}

function compareKernels(comparison) {
  if (!comparison.kernels.length) return null;
  const columns = [
    {
      title: "Kernel",
      value: (one) => one.name,
      cell: (one) => [
        h("code", { title: one.name }, one.name),
        one.new_name ? h("code", { title: one.new_name }, `→ ${one.new_name}`) : null,
      ],
    },
    { title: "Change", value: (one) => one.change, cell: (one) => one.change },
    { title: "Phase", value: (one) => one.phase, cell: (one) => one.phase || "–" },
    { title: "Before µs", number: true, value: (one) => one.before_us, cell: (one) => number(one.before_us) },
    { title: "After µs", number: true, value: (one) => one.after_us, cell: (one) => number(one.after_us) },
    {
      title: "Launches before",
      number: true,
      value: (one) => one.before_count,
      cell: (one) => integer(one.before_count),
    },
    { title: "Launches after", number: true, value: (one) => one.after_count, cell: (one) => integer(one.after_count) },
  ];
  return section(
    "Kernels that changed",
    h(
      "p",
      { class: "muted small" },
      "Of the profiled window, which runs once: mean times without an interval, those that matter most first.",
    ),
    h(
      "div",
      { class: "tall" },
      sortableTable(columns, comparison.kernels, { caption: "Kernels that changed", step: 40 }).element,
    ),
  );
}

function compareTexts(comparison) {
  const overview = block("overview");
  const told = new Map(comparison.texts.map((text) => [text.test, text]));
  const tests = overview.rows
    .map((row, index) => ({ row, index, text: told.get(row.id) }))
    .filter(({ row, text }) => row.changed || (text && text.differ));
  if (!tests.length) return null;
  return section(
    "Answers that changed",
    tests.map(({ row, index, text }) => {
      const rates =
        text && text.cer_before !== null && text.cer_after !== null
          ? `, CER ${number(text.cer_before)} → ${number(text.cer_after)}`
          : "";
      const what = row.changed
        ? `the text of ${count(row.changed, "page")} differs`
        : `${text.exact ? "the text" : "the number of tokens"} of ${count(text.differ, "page")} differs`;
      const list = h("div");
      const details = h(
        "details",
        { class: "changed" },
        h("summary", {}, `${nameWithStage(overview, row)}: ${what}${rates}`),
        row.changed
          ? list
          : h(
              "p",
              { class: "muted" },
              "The texts are not there on both sides: compare two run directories, each with a gallery or predictions.",
            ),
      );
      if (row.changed)
        details.addEventListener("toggle", () => details.open && !list.firstChild && changedAnswers(list, index));
      return details;
    }),
  );
}

async function changedAnswers(list, index) {
  const [before, after] = await Promise.all([largeBlock(`before-${index}`), largeBlock(`answers-${index}`)]);
  const now = new Map((after || []).map((answer) => [answer.page, answer]));
  const growing = new GrowingList(
    list,
    (old) => {
      const answer = now.get(old.page);
      if (!answer) return h("p", {}, old.page);
      const parts = differences(old.raw, answer.raw);
      const pane = (title, kinds) =>
        h(
          "div",
          {},
          h("h3", {}, title),
          parts
            ? diffText(parts.filter((part) => kinds.includes(part.kind)))
            : h("pre", { class: "raw", dir: "auto" }, title === "Before" ? old.raw : answer.raw),
        );
      return h(
        "article",
        {},
        h(
          "h3",
          {},
          h("a", { href: `#/gallery/${index}/${encodeURIComponent(old.page)}` }, h("bdi", {}, old.page)),
          h(
            "span",
            { class: "muted" },
            old.cer !== undefined || answer.cer !== undefined
              ? ` CER ${number(old.cer)} → ${number(answer.cer)}`
              : "",
          ),
        ),
        h("div", { class: "texts" }, pane("Before", ["same", "removed"]), pane("After", ["same", "added"])),
      );
    },
    8,
  );
  growing.set(before);
}
