// One test in one stage.

const PHASE_COLOURS = {
  preprocess: "phase-grey",
  vision: "phase-sky",
  sam: "phase-green",
  clip: "phase-yellow",
  projector: "phase-vermilion",
  prefill: "phase-orange",
  decode: "phase-blue",
  other: "phase-purple",
};
const SPARE_COLOURS = ["phase-green", "phase-vermilion", "phase-yellow", "phase-sky", "phase-purple"];

function phaseColour(name, at = 0) {
  return PHASE_COLOURS[name] || SPARE_COLOURS[at % SPARE_COLOURS.length];
}

views.test = {
  title: ([index]) => testName(block("overview").rows[index] || { id: "", stage: "" }).name,
  render(root, [argument]) {
    const overview = block("overview");
    const index = Number(argument);
    const row = overview.rows[index];
    const data = block(`test-${index}`);
    if (!row || !data) {
      root.append(h("h1", {}, "There is no such test"), h("p", {}, h("a", { href: "#/" }, "All tests")));
      return;
    }
    root.append(
      ...[
        testHead(overview, row, data, index),
        testProblems(row, data),
        section(
          "What to look at",
          data.findings_html?.length
            ? h(
                "ol",
                { class: "findings" },
                data.findings_html.map((text) => h("li", {}, fromSafeHtml(text))),
              )
            : null,
        ),
        overview.compared ? comparisonOf(row.id) : null,
        testPhases(data),
        testMemory(data),
        testPages(data, row.kind),
        data.timeline ? timelinePart(index, row, data) : null,
        testTables(data, row),
        testMetrics(data),
        ...(data.sections || []).map((one) =>
          section(one.title, h("div", { class: "markdown" }, fromSafeHtml(one.html))),
        ),
        testFiles(data, row),
        testEnvironment(data),
      ].filter(Boolean),
    );
    return {
      up: "#/",
      keys: {
        "]": () => index + 1 < overview.rows.length && (location.hash = `#/test/${index + 1}`),
        "[": () => index > 0 && (location.hash = `#/test/${index - 1}`),
      },
    };
  },
};

function testHead(overview, row, data, index) {
  const { file, name } = testName(row);
  const key = overview.columns
    .map((column, at) => [column, row.values[at]])
    .filter(([column, value]) => column.shown && value !== null && value !== undefined);
  const step = (to, label, sign) =>
    overview.rows[to]
      ? h(
          "a",
          { href: `#/test/${to}`, "aria-label": label, title: `${label}: ${testName(overview.rows[to]).name}` },
          sign,
        )
      : h("span", { class: "off", "aria-hidden": "true" }, sign);
  const took = row.seconds === null || row.seconds === undefined ? null : `took ${duration(row.seconds)}`;
  const facts = [row.stage, file, row.device, took];
  return h(
    "div",
    { class: "verdict" },
    h(
      "p",
      { class: "crumbs" },
      h("a", { href: "#/" }, "All tests"),
      h(
        "span",
        { class: "steps" },
        step(index - 1, "Previous test", "‹"),
        ` ${index + 1} of ${overview.rows.length} `,
        step(index + 1, "Next test", "›"),
      ),
    ),
    h("h1", {}, name),
    h("p", { class: "muted" }, outcomeBadge(row.outcome), ` ${facts.filter(Boolean).join(" · ")}`),
    data.summary_html ? h("p", {}, fromSafeHtml(data.summary_html)) : null,
    row.gallery
      ? h(
          "p",
          {},
          h(
            "a",
            { class: "action", href: `#/gallery/${index}` },
            `Gallery: ${count(row.gallery, "page")} with answers and differences`,
          ),
        )
      : null,
    key.length
      ? h(
          "dl",
          { class: "key" },
          key.map(([column, value]) =>
            h(
              "div",
              { title: column.description },
              h("dt", {}, row.kind === "callable" ? column.title_of_call : column.title),
              h("dd", {}, metricCell(column, value, row.failed_gates)),
            ),
          ),
        )
      : null,
  );
}

function testProblems(row, data) {
  const errors = data.errors || [];
  const lines = [
    data.problem ? h("li", {}, data.problem) : null,
    row.error ? h("li", {}, row.error) : null,
    ...errors.slice(0, 50).map(([page, error]) => h("li", {}, page ? h("strong", {}, `${page}: `) : null, error)),
    errors.length > 50 ? h("li", {}, `and ${errors.length - 50} more, in metrics.json`) : null,
  ].filter(Boolean);
  const why = { failed: "Why it failed", skipped: "Why it was skipped" }[row.outcome] || "What went wrong";
  const known = row.error || "";
  const failedGates = (data.gates || []).filter((gate) => gate.outcome !== "passed" && !known.includes(gate.text));
  const warnings = data.warnings_html || [];
  const parts = [
    lines.length
      ? h("div", { class: `box ${row.outcome === "failed" ? "bad" : "warn"}` }, h("h2", {}, why), h("ul", {}, lines))
      : null,
    failedGates.length
      ? h(
          "div",
          { class: "box warn" },
          h("h2", {}, "Gates"),
          h(
            "ul",
            {},
            failedGates.map((gate) => h("li", {}, gate.text)),
          ),
        )
      : null,
    warnings.length
      ? h(
          "div",
          { class: "box" },
          h("h2", {}, "What makes its numbers doubtful"),
          h(
            "ul",
            {},
            warnings.map((text) => h("li", {}, fromSafeHtml(text))),
          ),
        )
      : null,
  ].filter(Boolean);
  return parts.length ? h("div", {}, parts) : null;
}

/** A stacked bar: parts are [name, value, colour]; *whole* is the value of the full width. */
function stackedBar(parts, whole, label) {
  return h(
    "span",
    { class: "bar", role: "img", "aria-label": label },
    parts
      .filter(([, value]) => value > 0)
      .map(([name, value, paint]) =>
        h("span", {
          class: paint,
          title: `${name}: ${number(value)} ms`,
          style: { width: `${(100 * value) / (whole || 1)}%` },
        }),
      ),
  );
}

function testPhases(data) {
  const phases = data.phases || [];
  if (!phases.length) return null;
  const whole = phases.filter((phase) => !phase.part);
  const sum = whole.reduce((total, phase) => total + phase.ms, 0);
  const peaks = phases.some((phase) => phase.peak_gib !== null);
  const columns = [
    {
      title: "Phase",
      value: (phase) => phase.name,
      cell: (phase) =>
        h(
          "span",
          { class: phase.part ? "part" : null },
          h("span", { class: `swatch ${phaseColour(phase.name)}` }),
          phase.name,
        ),
    },
    { title: "Median ms", number: true, value: (phase) => phase.ms, cell: (phase) => number(phase.ms) },
    {
      title: "IQR ms",
      number: true,
      hint: "Noise: a page's spread over its rounds",
      value: (phase) => phase.iqr,
      cell: (phase) => number(phase.iqr),
    },
    { title: "Share", number: true, value: (phase) => phase.share, cell: (phase) => percent(phase.share) },
    ...(peaks
      ? [{ title: "Peak GiB", number: true, value: (phase) => phase.peak_gib, cell: (phase) => number(phase.peak_gib) }]
      : []),
  ];
  const label = whole.map((phase) => `${phase.name} ${number(phase.ms)} ms`).join(", ");
  return section(
    `Phases of the median ${data.batch ? "batch" : "page"}`,
    h(
      "div",
      { class: "wide-bar" },
      stackedBar(
        whole.map((phase) => [phase.name, phase.ms, phaseColour(phase.name)]),
        sum,
        label,
      ),
    ),
    sortableTable(columns, phases, { caption: "Phases" }).element,
  );
}

function testMemory(data) {
  const phases = (data.phases || []).filter((phase) => phase.peak_gib !== null);
  if (!phases.length) return null;
  const most = largest(phases.map((phase) => phase.peak_gib));
  return section(
    "Peak memory by phase",
    h(
      "div",
      { class: "rows" },
      phases.map((phase) => [
        h("span", { class: phase.part ? "part" : null }, phase.name),
        h(
          "span",
          { class: "bar" },
          h("span", { class: phaseColour(phase.name), style: { width: `${(100 * phase.peak_gib) / most}%` } }),
        ),
        h("span", { class: "number" }, `${number(phase.peak_gib)} GiB`),
      ]),
    ),
  );
}

function testTables(data, row) {
  const tables = data.tables || [];
  if (!tables.length) return null;
  const holder = h("div");
  const buttons = tables.map((table, at) =>
    h(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${at}`,
        "aria-selected": "false",
        "aria-controls": "table-panel",
        onclick: () => open(at),
      },
      tableName(table.file),
    ),
  );
  holder.id = "table-panel";
  holder.setAttribute("role", "tabpanel");
  function open(at) {
    buttons.forEach((button, index) => button.setAttribute("aria-selected", String(index === at)));
    holder.setAttribute("aria-labelledby", `tab-${at}`);
    holder.replaceChildren(...csvTable(tables[at], row));
  }
  const first = tables.findIndex((table) => table.file === "kernels.csv");
  open(Math.max(0, first));
  return section(
    "Tables",
    h("div", { class: "tabs", role: "tablist", "aria-label": "Tables of this test" }, buttons),
    holder,
  );
}

function tableName(file) {
  const name = file.replace(/\.csv$/, "").replaceAll("_", " ");
  return name.charAt(0).toUpperCase() + name.slice(1);
}

function csvNumber(title, text) {
  if (text === "") return "–";
  if (/^-?\d+$/.test(text)) return Number(text).toLocaleString("en-US");
  return title.endsWith("share") ? percent(Number(text)) : number(Number(text));
}

function csvTable(table, row) {
  const names = new Map((table.short || []).map((name, at) => [table.rows[at], name]));
  const columns = table.columns.map((title, at) => ({
    title: title.replaceAll("_", " "),
    number: table.numeric[at],
    value: (cells) => (table.numeric[at] ? (cells[at] === "" ? null : Number(cells[at])) : cells[at]),
    cell: (cells) =>
      table.numeric[at]
        ? csvNumber(title, cells[at])
        : at
          ? h("span", { class: "code" }, cells[at] || "–")
          : h("code", { title: cells[at] }, names.get(cells) || cells[at]),
  }));
  const shown = sortableTable(columns, table.rows, { caption: tableName(table.file), step: 25 });
  const search = h("input", { type: "search", "aria-label": `Search ${table.file}`, placeholder: "Search names" });
  search.addEventListener(
    "input",
    debounced(() => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      shown.setItems(table.rows.filter((cells) => words.every((word) => cells.join(" ").toLowerCase().includes(word))));
    }),
  );
  const link = h("a", { href: fileUrl(row.dir, table.file) }, table.file);
  return [
    h(
      "div",
      { class: "toolbar" },
      search,
      h(
        "span",
        { class: "muted" },
        table.total > table.rows.length
          ? `the first ${integer(table.rows.length)} of ${integer(table.total)} rows; all are in `
          : "from ",
        link,
      ),
    ),
    h("div", { class: "tall" }, shown.element),
  ];
}

function testMetrics(data) {
  const rows = data.metrics || [];
  const quality = data.quality || [];
  if (!rows.length && !quality.length) return null;
  const names = { value: "Median", iqr: "IQR", min: "Min", max: "Max", p90: "p90", p99: "p99" };
  const there = Object.keys(names).filter(
    (name) => name === "value" || rows.some((row) => row[name] !== null && row[name] !== undefined),
  );
  const columns = [
    { title: "Metric", value: (row) => row.title, cell: (row) => row.title },
    ...there.map((name) => ({
      title: names[name],
      number: true,
      value: (row) => row[name],
      cell: (row) => (row[name] === null && name !== "value" ? "" : number(row[name])),
    })),
  ];
  const passed = (data.gates || []).filter((gate) => gate.outcome === "passed");
  const ofQuality = [columns[0], { ...columns[1], title: "Value" }];
  return section(
    "Metrics",
    rows.length ? sortableTable(columns, rows, { caption: "Metrics" }).element : null,
    data.metrics_note ? h("p", { class: "muted small" }, data.metrics_note) : null,
    quality.length
      ? [h("h3", {}, "Quality"), sortableTable(ofQuality, quality, { caption: "Quality" }).element]
      : null,
    data.quality_note ? h("p", { class: "muted small" }, data.quality_note) : null,
    passed.length
      ? [
          h("h3", {}, "Gates that passed"),
          h(
            "ul",
            {},
            passed.map((gate) => h("li", {}, gate.text)),
          ),
        ]
      : null,
  );
}

function testFiles(data, row) {
  const command = commandCode(data.repeat);
  return section(
    "Run it again, look deeper",
    h("p", {}, "This test alone, with the options of the run, from the project's root directory:"),
    h("p", { class: "command" }, command, copyButton(data.repeat, command)),
    data.trace
      ? h(
          "p",
          {},
          h("a", { class: "action", href: fileUrl(row.dir, data.trace), download: true }, "Save the trace"),
          h("span", { class: "muted" }, " and open it in ui.perfetto.dev or chrome://tracing."),
        )
      : null,
    data.facts_html?.length
      ? h(
          "ul",
          { class: "plain" },
          data.facts_html.map((text) => h("li", {}, fromSafeHtml(text))),
        )
      : null,
    data.files_html ? [h("h3", {}, "Files"), h("div", { class: "markdown" }, fromSafeHtml(data.files_html))] : null,
    row.dir
      ? h("p", { class: "muted small" }, "Everything is in ", h("a", { href: fileUrl(row.dir) }, row.dir), ".")
      : null,
  );
}

function testEnvironment(data) {
  return data.environment?.length
    ? section(
        "Environment",
        h(
          "dl",
          { class: "facts" },
          data.environment.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
        ),
      )
    : null;
}
