// The first view: the verdict, all tests, and what stands out.

views.overview = {
  title: () => "Overview",
  render(root) {
    const data = block("overview");
    root.append(
      ...[
        overviewHead(data),
        data.compared ? overviewComparison() : null,
        overviewFailures(data),
        overviewTests(data),
        section("What to look at", overviewNotes(data, data.findings)),
        section("What makes numbers doubtful", overviewNotes(data, data.warnings)),
        overviewEnvironment(data),
      ].filter(Boolean),
    );
  },
};

function overviewHead(data) {
  const outcomes = new Map();
  for (const row of data.rows) outcomes.set(row.outcome, (outcomes.get(row.outcome) || 0) + 1);
  const total = data.rows.length;
  const failed = outcomes.get("failed") || 0;
  const [sign, kind, verdict] = failed
    ? ["✕", "bad", `${failed} of ${count(total, "test")} failed`]
    : !total
      ? ["–", "quiet", "No test ran"]
      : outcomes.get("passed") === total
        ? ["✓", "good", `${total === 1 ? "The test" : `All ${count(total, "test")}`} passed`]
        : ["–", "quiet", [...outcomes].map(([name, amount]) => `${amount} ${name}`).join(", ")];
  const ended =
    data.status === "complete"
      ? ""
      : `The run ${{ running: "has not ended", stopped: "was stopped" }[data.status] || "was interrupted"}. `;
  const distinct = (name) => [...new Set(data.rows.map((row) => row[name]).filter(Boolean))];
  const facts = [dateText(data.started), ...distinct("stage"), ...distinct("device")];
  const command = commandCode(data.command);
  return h(
    "div",
    { class: "verdict" },
    h("h1", {}, h("span", { class: `mark ${kind}`, "aria-hidden": "true" }, sign), `${ended}${verdict}`),
    h("p", { class: "muted" }, facts.join(" · ")),
    h("p", { class: "command" }, command, copyButton(data.command, command)),
  );
}

function overviewComparison() {
  const comparison = block("comparison");
  const counts = new Map();
  for (const row of comparison.rows.filter(isShown)) counts.set(row.verdict, (counts.get(row.verdict) || 0) + 1);
  const text = [...counts]
    .sort(([a], [b]) => WEIGHT.indexOf(a) - WEIGHT.indexOf(b))
    .map(([verdict, amount]) => `${integer(amount)} ${verdict}`)
    .join(", ");
  return h(
    "p",
    { class: "notice" },
    "Against ",
    h("strong", {}, shortName(comparison.before.name)),
    `: ${text || "nothing to compare"}. `,
    h("a", { href: "#/compare" }, "See the comparison"),
  );
}

/** A test's name, with its stage where the run has several. */
function nameWithStage(data, row) {
  data.severalStages ??= data.rows.some((other) => other.stage !== row.stage); // once: there may be thousands of rows
  return `${testName(row).name}${data.severalStages ? ` ${row.stage}` : ""}`;
}

function testLink(data, index) {
  const name = nameWithStage(data, data.rows[index]);
  return h("a", { href: `#/test/${index}`, title: name }, name);
}

const WITHOUT_ERROR = { failed: "no reason is recorded", interrupted: "the run ended while this test ran" };

function overviewFailures(data) {
  const failed = data.rows
    .map((row, index) => [row, index])
    .filter(([row]) => ["failed", "interrupted"].includes(row.outcome));
  if (!failed.length) return null;
  const list = h("ul", { class: "failures" });
  const growing = new GrowingList(
    list,
    ([row, index]) =>
      h(
        "li",
        {},
        h("a", { href: `#/test/${index}`, "data-item": true }, testName(row).name),
        h("span", { class: "muted" }, ` ${row.stage}`),
        h("p", { class: "error" }, row.error || WITHOUT_ERROR[row.outcome]),
      ),
    20,
  );
  growing.set(failed);
  const outcomes = [...new Set(failed.map(([row]) => row.outcome))].sort().join(" and ");
  const title = failed.length === 1 ? `The ${outcomes} test` : `${outcomes[0].toUpperCase()}${outcomes.slice(1)} tests`;
  return section(title, h("div", { class: "tall" }, list));
}

/** What the reader has searched, chosen and sorted by: it stays while they look at a test. */
let testsState = null;

function firstColumns(data) {
  const shown = data.columns.filter((column) => column.shown);
  return new Set((shown.length ? shown : data.columns.slice(0, 5)).map((column) => column.name));
}

function overviewTests(data) {
  if (!data.rows.length) return null;
  const items = data.rows.map((row, index) => ({
    row,
    index,
    search: `${row.id} ${row.stage} ${row.engine || ""}`.toLowerCase(),
  }));
  const verdicts = data.compared ? verdictsByTest(block("comparison")) : null;
  const state = (testsState ??= { text: "", outcome: "", stage: "", order: null, chosen: firstColumns(data) });
  const { chosen } = state;
  const engines = new Set(data.rows.map((row) => row.engine).filter(Boolean));
  const several = new Set(data.rows.map((row) => row.stage)).size > 1;
  const holder = h("div", { class: "tall" });
  const counted = h("span", { class: "muted", role: "status" });
  let table = null;

  function columns() {
    const metrics = data.columns
      .map((column, at) => ({ column, at }))
      .filter(({ column }) => chosen.has(column.name))
      .map(({ column, at }) => ({
        title: column.short,
        hint: column.description,
        number: true,
        value: ({ row }) => row.values[at],
        cell: ({ row }) => metricCell(column, row.values[at], row.failed_gates),
      }));
    return [
      {
        title: "Test",
        value: ({ row }) => row.id,
        cell: ({ row, index }) => {
          const { file, name } = testName(row);
          return [h("a", { href: `#/test/${index}`, "data-item": true }, name), file ? h("small", {}, file) : null];
        },
      },
      { title: "Outcome", value: ({ row }) => row.outcome, cell: ({ row }) => outcomeBadge(row.outcome) },
      ...(several ? [{ title: "Stage", value: ({ row }) => row.stage, cell: ({ row }) => row.stage }] : []),
      ...(engines.size > 1
        ? [{ title: "Engine", value: ({ row }) => row.engine, cell: ({ row }) => row.engine || "–" }]
        : []),
      ...(verdicts
        ? [
            {
              title: "Against the baseline",
              hint: "The weightiest verdict of its metrics",
              value: ({ row }) => (verdicts.has(row.id) ? WEIGHT.indexOf(verdicts.get(row.id)) : null),
              cell: ({ row }) => (verdicts.has(row.id) ? verdictBadge(verdicts.get(row.id)) : "–"),
            },
          ]
        : []),
      ...metrics,
      {
        title: "Took",
        number: true,
        hint: "Wall time with set-up and teardown",
        value: ({ row }) => row.seconds,
        cell: ({ row }) => duration(row.seconds),
      },
    ];
  }

  function kept() {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    return items.filter(
      ({ row, search }) =>
        (!state.outcome || row.outcome === state.outcome) &&
        (!state.stage || row.stage === state.stage) &&
        words.every((word) => search.includes(word)),
    );
  }

  function rebuild() {
    table = sortableTable(columns(), kept(), { caption: "Tests", order: table ? table.order() : state.order });
    holder.replaceChildren(table.element);
    filter();
  }

  function filter() {
    const found = kept();
    table.setItems(found);
    const all = count(items.length, "test");
    counted.textContent = found.length === items.length ? all : `${integer(found.length)} of ${all}`;
  }

  const search = h("input", {
    type: "search",
    "aria-label": "Search tests",
    placeholder: "Search tests (/)",
    "data-search": true,
    value: state.text,
  });
  search.addEventListener(
    "input",
    debounced(() => ((state.text = search.value), filter())),
  );
  const choice = (label, key, values) =>
    h(
      "select",
      { "aria-label": label, onchange: (event) => ((state[key] = event.target.value), filter()) },
      h("option", { value: "" }, label),
      values.map((value) => h("option", { value, selected: value === state[key] }, value)),
    );
  const outcomes = [...new Set(data.rows.map((row) => row.outcome))];
  const chooser = h(
    "details",
    { class: "chooser" },
    h("summary", {}, "Columns"),
    h(
      "div",
      { class: "choices" },
      data.columns.map((column) =>
        h(
          "label",
          { title: column.description },
          h("input", {
            type: "checkbox",
            checked: chosen.has(column.name),
            onchange: (event) => {
              if (event.target.checked) chosen.add(column.name);
              else chosen.delete(column.name);
              rebuild();
            },
          }),
          ` ${column.title}`,
        ),
      ),
    ),
  );
  rebuild();
  cleanups.push(() => (state.order = table.order()));
  return h(
    "section",
    {},
    h("h2", {}, "Tests"),
    h(
      "div",
      { class: "toolbar" },
      search,
      outcomes.length > 1 ? choice("All outcomes", "outcome", outcomes) : null,
      several ? choice("All stages", "stage", [...new Set(data.rows.map((row) => row.stage))]) : null,
      data.columns.length ? chooser : null,
      counted,
    ),
    holder,
  );
}

function metricCell(column, value, failedGates = []) {
  if (value === null || value === undefined) return "–";
  const text = column.unit === "share" ? percent(value) : number(value);
  return failedGates.includes(column.name)
    ? h("span", { class: "broken", title: "outside its limit" }, `✕ ${text}`)
    : text;
}

function overviewNotes(data, notes) {
  if (!notes.length) return null;
  const list = h("ul", { class: "notes" });
  const growing = new GrowingList(
    list,
    (note) =>
      h(
        "li",
        {},
        h("span", {}, fromSafeHtml(note.html)),
        h(
          "span",
          { class: "where" },
          note.tests.length === data.rows.length && data.rows.length > 3
            ? "all tests"
            : [
                note.tests.slice(0, 3).map((index) => testLink(data, index)),
                note.tests.length > 3 ? `and ${integer(note.tests.length - 3)} more` : null,
              ],
        ),
      ),
    40,
  );
  growing.set(notes);
  return h("div", { class: "tall" }, list);
}

function overviewEnvironment(data) {
  const rows = (pairs) =>
    h(
      "dl",
      { class: "facts" },
      pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
    );
  const versions = Object.entries(data.versions)
    .filter(([, version]) => version)
    .map(([name, version]) => `${name} ${version}`)
    .join(", ");
  const shown = data.environments
    .slice(0, 8)
    .map((environment) => [
      data.environments.length > 1 ? h("h3", {}, count(environment.tests.length, "test")) : null,
      rows(environment.rows),
    ]);
  return section("Environment", shown.length ? shown : versions ? rows([["Versions", versions]]) : null);
}
