// The pages of a test: all rounds as points, and the phases of each page as bars.

const MEASURES = {
  total: "Total ms",
  ttft: "Time to first token ms",
  tpot: "Time per output token ms",
  tokens: "Tokens",
};

/** One entry a page: its samples' indexes and medians, slowest first. */
function pagesOf(data) {
  const { samples, pages } = data;
  const members = pages.map(() => []);
  samples.page.forEach((page, at) => members[page].push(at));
  const entries = pages.map((name, page) => ({
    name,
    page,
    at: members[page],
    total: median(members[page].map((at) => samples.total[at])),
  }));
  return entries.sort((a, b) => (b.total || 0) - (a.total || 0));
}

function testPages(data, kind) {
  if (!data.samples || !data.samples.page.length) return null;
  const { samples } = data;
  const entries = pagesOf(data);
  const known = Object.keys(MEASURES).filter((name) => samples[name].some((value) => value !== null));
  const rounds = largest(samples.round) + 1;
  const chart = h("div", { class: "chart" });
  const readout = h(
    "p",
    { class: "readout muted", "aria-live": "off" },
    entries.length === 1
      ? "Each point is one round."
      : "Each point is one round of a page; pages are in the order of their time.",
  );
  let plot = null;
  const draw = (name) => {
    if (plot) plot.destroy();
    plot = roundsChart(chart, readout, entries, data, name);
  };
  const select = h(
    "select",
    { "aria-label": "Metric of the chart", onchange: (event) => draw(event.target.value) },
    known.map((name) => h("option", { value: name }, MEASURES[name])),
  );
  requestAnimationFrame(() => chart.isConnected && draw(known[0]));
  const resize = debounced(() => chart.isConnected && draw(select.value), 150);
  addEventListener("resize", resize);
  cleanups.push(() => (removeEventListener("resize", resize), plot && plot.destroy()));
  const one = entries.length === 1;
  return section(
    one ? "Rounds" : "Pages and rounds",
    h(
      "div",
      { class: "toolbar" },
      known.length > 1 ? select : null,
      h(
        "span",
        { class: "muted" },
        [kind === "pages" ? count(entries.length, "page") : null, count(rounds, "round")].filter(Boolean).join(", "),
      ),
    ),
    chart,
    readout,
    (data.contended || []).includes(true)
      ? h(
          "p",
          { class: "legend" },
          h("span", {}, h("span", { class: "ring" }), "rounds in which the host was contended"),
        )
      : null,
    Object.keys(samples.phases).length && (data.phases || []).length ? pageBars(data, entries) : null,
  );
}

function roundsChart(holder, readout, entries, data, name) {
  const { samples } = data;
  const values = samples[name];
  const single = entries.length === 1;
  const xs = [];
  const ys = [];
  const disturbed = [];
  const at = [];
  entries.forEach((entry, place) =>
    entry.at.forEach((index) => {
      if (values[index] === null) return;
      xs.push(single ? samples.round[index] + 1 : place + 1);
      const contended = Boolean((data.contended || [])[samples.round[index]]);
      ys.push(contended ? null : values[index]);
      disturbed.push(contended ? values[index] : null);
      at.push([entry, index]);
    }),
  );
  const all = at.map(([, index]) => values[index]);
  const most = single ? Math.max(largest(xs), 1) : entries.length;
  const axis = {
    stroke: colour("muted"),
    grid: { stroke: colour("line"), width: 1 },
    ticks: { stroke: colour("line"), width: 1 },
    font: "12px system-ui, sans-serif",
  };
  const points = (name) => ({
    paths: () => null,
    stroke: colour(name),
    points: {
      show: true,
      size: entries.length > 200 ? 4 : 7,
      fill: name === "accent" ? colour("accent-soft") : colour("background"),
      stroke: colour(name),
      width: name === "accent" ? 1 : 1.5,
    },
  });
  holder.replaceChildren();
  return new uPlot(
    {
      width: Math.max(280, holder.clientWidth),
      height: 240,
      legend: { show: false },
      cursor: { drag: { x: true, y: false }, points: { size: 9 } },
      scales: {
        x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low - 0.6, high + 0.6]) },
        y: { range: (_, low, high) => [0, (high || 1) * 1.08] },
      },
      axes: [
        {
          ...axis,
          label: single ? "Round" : "Page, slowest first",
          labelFont: axis.font,
          labelSize: 22,
          incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
          values: (_, ticks) =>
            ticks.map((tick) => (Number.isInteger(tick) && tick >= 1 && tick <= most ? String(tick) : "")),
        },
        { ...axis, size: 64, values: (_, ticks) => ticks.map(number) },
      ],
      series: [{}, points("accent"), points("bad")],
      hooks: {
        setCursor: [
          (plot) => {
            const found = nearestPoint(plot, xs, all);
            if (found === null) return;
            const [entry, index] = at[found];
            const shown = name === "tokens" ? `${integer(values[index])} tokens` : `${number(values[index])} ms`;
            const disturbance = disturbed[found] === null ? "" : " (the host was contended)";
            readout.textContent = `${entry.name}, round ${samples.round[index] + 1}: ${shown}${disturbance}`;
          },
        ],
      },
    },
    [xs, ys, disturbed],
    holder,
  );
}

/** The point nearest to the cursor on the screen. */
function nearestPoint(plot, xs, ys) {
  const { left, top } = plot.cursor;
  if (left === null || left === undefined || left < 0) return null;
  let best = null;
  let distance = Infinity;
  for (let at = 0; at < xs.length; at += 1) {
    const dx = plot.valToPos(xs[at], "x") - left;
    const dy = plot.valToPos(ys[at], "y") - top;
    if (dx * dx + dy * dy < distance) [best, distance] = [at, dx * dx + dy * dy];
  }
  return best;
}

function pageBars(data, entries) {
  const { samples } = data;
  const phases = (data.phases || [])
    .filter((phase) => !phase.part && (samples.phases[phase.name] || phase.name === "other"))
    .map((phase) => phase.name);
  const names = phases.length ? phases : Object.keys(samples.phases);
  const values = (name, at) => (name === "other" ? samples.other[at] : (samples.phases[name] || [])[at]) || 0;
  const most = largest(samples.total);
  const row = (label, parts, total, attributes = {}) =>
    h(
      "div",
      { class: "page-row", ...attributes },
      label,
      stackedBar(parts, most, parts.map(([name, value]) => `${name} ${number(value)} ms`).join(", ")),
      h("span", { class: "number" }, `${number(total)} ms`),
    );
  const list = h("div", { class: "page-rows" });
  const growing = new GrowingList(
    list,
    (entry) => {
      const parts = names.map((name, at) => [
        name,
        median(entry.at.map((one) => values(name, one))),
        phaseColour(name, at),
      ]);
      if (entry.at.length < 2) return row(h("span", { class: "name" }, entry.name), parts, entry.total);
      const button = h("button", { type: "button", class: "name", "aria-expanded": "false" }, entry.name);
      const holder = h("div", {}, row(button, parts, entry.total));
      button.addEventListener("click", () => {
        const open = button.getAttribute("aria-expanded") === "true";
        button.setAttribute("aria-expanded", String(!open));
        if (open) holder.replaceChildren(holder.firstElementChild);
        else
          holder.append(
            ...entry.at.map((one) =>
              row(
                h("span", { class: "name muted" }, `round ${samples.round[one] + 1}`),
                names.map((name, at) => [name, values(name, one), phaseColour(name, at)]),
                samples.total[one],
                { class: "page-row sub" },
              ),
            ),
          );
      });
      return holder;
    },
    50,
  );
  const few = 12;
  growing.set(entries.slice(0, few));
  const more =
    entries.length > few
      ? h("button", { type: "button", class: "quiet" }, `Show all ${count(entries.length, "page")}`)
      : null;
  if (more) more.addEventListener("click", () => (more.remove(), growing.set(entries)));
  return [
    h("h3", {}, "Phases of each page"),
    h(
      "p",
      { class: "legend" },
      names.map((name, at) => h("span", {}, h("span", { class: `swatch ${phaseColour(name, at)}` }), name)),
    ),
    h("div", { class: "tall", tabindex: "0", role: "region", "aria-label": "Phases of each page" }, list),
    more,
  ];
}
