// The profiled window over time, on a canvas: phases, host, GPU streams, idle times with their cause.

const LANE = { phases: 20, host: 20, gpu: 26, idle: 14 };
const IDLE_COLOURS = { launch: "vermilion", synchronisation: "orange", device: "grey" };
const IDLE_MEANING = {
  launch: "the host had not launched the next work yet",
  synchronisation: "the host had waited for the GPU, so nothing was queued",
  device: "the next work was queued already",
};
const NAME_COLOURS = ["blue", "orange", "green", "purple", "sky", "vermilion", "yellow"];
const LEFT = 116;

function timelinePart(index, row, data) {
  const holder = h("div", { class: "timeline" }, h("p", { class: "muted" }, "Reading the timeline …"));
  const left = { now: false };
  cleanups.push(() => (left.now = true));
  if (data.timeline === "here")
    largeBlock(`timeline-${index}`)
      .then((timeline) => left.now || holder.replaceChildren(...new TimelineView(timeline).elements))
      .catch((error) => holder.replaceChildren(unreadable(error)));
  else holder.replaceChildren(timelineFromFile(holder, row));
  return section("Profiled window over time", holder);
}

/** Where the page would have become too large: the reader opens timeline.json, which a page from the disk may not. */
function timelineFromFile(holder, row) {
  const input = h("input", { type: "file", accept: ".json", "aria-label": "timeline.json of this test" });
  input.addEventListener("change", async () => {
    try {
      holder.replaceChildren(...new TimelineView(JSON.parse(await input.files[0].text())).elements);
    } catch {
      holder.append(h("p", { class: "bad" }, "This is no timeline.json."));
    }
  });
  return h(
    "div",
    {},
    h(
      "p",
      {},
      "Of a run this large the page holds the first timelines only. Open this one's file: ",
      h("code", {}, `${row.dir}/timeline.json`),
    ),
    input,
  );
}

class TimelineView {
  constructor(timeline) {
    this.timeline = timeline;
    this.whole = Math.max(1, timeline.window_ns);
    this.begin = 0;
    this.end = this.whole;
    this.search = "";
    this.pinned = null;
    this.canvas = h("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label":
        "Timeline of the profiled window. Keys: plus and minus zoom, left and right arrows move, 0 shows all.",
    });
    this.readout = h("p", { class: "readout", role: "status" });
    this.summary = h("div");
    const button = (label, text, action) =>
      h("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick: action }, text);
    const search = h("input", {
      type: "search",
      "aria-label": "Highlight events by name",
      placeholder: "Highlight names",
    });
    search.addEventListener(
      "input",
      debounced(() => this.highlight(search.value)),
    );
    const bar = h(
      "div",
      { class: "toolbar" },
      button("Zoom in", "+", () => this.zoom(0.5)),
      button("Zoom out", "−", () => this.zoom(2)),
      button("Show all", "Show all", () => this.show(0, this.whole)),
      search,
      h(
        "span",
        { class: "muted small" },
        "Drag to move, shift and drag to zoom to a part, ctrl and wheel to zoom, click for a sum.",
      ),
    );
    this.layout();
    this.events();
    this.elements = [bar, this.canvas, this.readout, this.legend(), this.summary];
    this.say(null);
    const resize = new ResizeObserver(() => this.draw());
    resize.observe(this.canvas);
    cleanups.push(() => resize.disconnect());
  }

  layout() {
    let top = 26;
    this.lanes = this.timeline.lanes.map((lane) => {
      const height = LANE[lane.kind] || 20;
      const placed = { ...lane, top, height };
      top += height + 5;
      return placed;
    });
    this.height = top + 4;
    this.canvas.style.height = `${this.height}px`;
  }

  legend() {
    const causes = this.lanes
      .filter((lane) => lane.kind === "idle")
      .flatMap((lane) => [...new Set(lane.label)].map((label) => [this.timeline.names[label], lane, label]));
    const left = this.timeline.left_out;
    return h(
      "p",
      { class: "legend" },
      causes.map(([cause, lane, label]) => {
        const sum = lane.dur.reduce((total, dur, at) => (lane.label[at] === label ? total + dur : total), 0);
        return h(
          "span",
          { title: IDLE_MEANING[cause] || "" },
          h("span", { class: `swatch phase-${IDLE_COLOURS[cause] || "grey"}` }),
          `idle: ${cause}, ${time(sum)}`,
        );
      }),
      left ? h("span", {}, `${count(left, "short event")} of the host left out`) : null,
    );
  }

  paint(lane, label) {
    const name = this.timeline.names[label] ?? "";
    if (lane.kind === "phases") return name === "step" ? "grey" : phaseColour(name, label).replace("phase-", "");
    if (lane.kind === "idle") return IDLE_COLOURS[name] || "grey";
    let hash = 0;
    for (let at = 0; at < name.length; at += 1) hash = (hash * 31 + name.charCodeAt(at)) >>> 0;
    return NAME_COLOURS[hash % NAME_COLOURS.length];
  }

  x(ns) {
    return LEFT + ((ns - this.begin) / (this.end - this.begin)) * (this.width - LEFT);
  }

  ns(x) {
    return this.begin + ((x - LEFT) / (this.width - LEFT)) * (this.end - this.begin);
  }

  show(begin, end) {
    const least = Math.min(1000, this.whole);
    const length = Math.max(least, Math.min(this.whole, end - begin));
    this.begin = Math.max(0, Math.min(this.whole - length, begin + (end - begin - length) / 2));
    this.end = this.begin + length;
    this.later();
  }

  zoom(factor, around = (this.begin + this.end) / 2) {
    const length = Math.max(Math.min(1000, this.whole), Math.min(this.whole, (this.end - this.begin) * factor));
    const share = (around - this.begin) / (this.end - this.begin);
    this.show(around - share * length, around + (1 - share) * length);
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  /** The first event of a lane that ends after *ns*. Events of a lane do not overlap, or hardly. */
  first(lane, ns) {
    let low = 0;
    let high = lane.start.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lane.start[middle] + lane.dur[middle] < ns) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  draw() {
    const ratio = devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    if (!this.width) return;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const paints = {};
    for (const name of [...NAME_COLOURS, "grey", "text", "muted", "line", "surface", "background"])
      paints[name] = colour(name);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    this.ruler(context, paints);
    for (const lane of this.lanes) this.lane(context, lane, paints);
    if (this.selection) {
      context.fillStyle = colour("accent-soft");
      const [from, to] = this.selection;
      context.fillRect(Math.min(from, to), 0, Math.abs(to - from), this.height);
    }
  }

  ruler(context, paints) {
    const length = this.end - this.begin;
    const rough = length / Math.max(2, (this.width - LEFT) / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    context.textAlign = "left";
    for (let at = Math.ceil(this.begin / step) * step; at <= this.end; at += step) {
      const x = Math.round(this.x(at)) + 0.5;
      context.fillStyle = paints.line;
      context.fillRect(x, 14, 1, this.height);
      context.fillStyle = paints.muted;
      context.fillText(time(at), Math.min(x + 3, this.width - 52), 8);
    }
  }

  lane(context, lane, paints) {
    context.fillStyle = paints.muted;
    context.textAlign = "left";
    context.fillText(lane.name, 0, lane.top + lane.height / 2, LEFT - 8);
    context.save();
    context.beginPath();
    context.rect(LEFT, lane.top, this.width - LEFT, lane.height);
    context.clip();
    context.fillStyle = paints.surface;
    context.fillRect(LEFT, lane.top, this.width - LEFT, lane.height);
    let drawnTo = -1;
    for (let at = this.first(lane, this.begin); at < lane.start.length && lane.start[at] < this.end; at += 1) {
      const from = this.x(lane.start[at]);
      const to = this.x(lane.start[at] + lane.dur[at]);
      // What would not add a third of a pixel to what is drawn already is left out: 50,000 kernels are a few thousand.
      if (to < drawnTo + 0.34) continue;
      const width = Math.max(to - from, 0.6);
      const dimmed = this.matches && !this.matches[lane.label[at]];
      context.globalAlpha = dimmed ? 0.15 : 1;
      context.fillStyle = paints[this.paint(lane, lane.label[at])];
      context.fillRect(from, lane.top, width > 3 ? width - 0.5 : width, lane.height);
      drawnTo = from + width;
      if (width > 34 && lane.kind !== "idle") {
        const begin = Math.max(from, LEFT);
        const room = Math.min(to, this.width) - begin - 8;
        if (room > 26) {
          context.fillStyle = inkOn(paints[this.paint(lane, lane.label[at])]);
          context.fillText(
            this.fitted(context, this.timeline.names[lane.label[at]] ?? "", room),
            begin + 4,
            lane.top + lane.height / 2 + 0.5,
          );
        }
      }
    }
    context.restore();
  }

  fitted(context, name, room) {
    const letters = Math.floor(room / 6.2);
    return name.length <= letters ? name : letters > 2 ? `${name.slice(0, letters - 1)}…` : "";
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left;
    const y = event.clientY - box.top;
    const lane = this.lanes.find((one) => y >= one.top && y < one.top + one.height);
    if (!lane || x < LEFT) return { x, found: null };
    const slack = (1.5 * (this.end - this.begin)) / (this.width - LEFT);
    const ns = this.ns(x);
    let best = null;
    for (let at = this.first(lane, ns - slack); at < lane.start.length && lane.start[at] <= ns + slack; at += 1) {
      const inside = lane.start[at] <= ns && ns <= lane.start[at] + lane.dur[at];
      if (inside || best === null) best = at;
      if (inside) break;
    }
    return { x, found: best === null ? null : { lane, at: best } };
  }

  say(found) {
    if (!found) {
      this.readout.textContent = `${time(this.end - this.begin)} of ${time(this.whole)} shown, under the profiler.`;
      return;
    }
    const { lane, at } = found;
    const name = this.timeline.names[lane.label[at]];
    const what = lane.kind === "idle" ? `GPU idle (${name}: ${IDLE_MEANING[name] || "unknown"})` : name;
    this.readout.textContent = `${what} · ${time(lane.dur[at])} · from ${time(lane.start[at])} · ${lane.name}`;
  }

  /** The sum of all events of a name in a lane. */
  sum(found) {
    if (!found) {
      this.summary.replaceChildren();
      return;
    }
    const { lane, at } = found;
    let amount = 0;
    let total = 0;
    let seen = 0;
    let seenTime = 0;
    lane.label.forEach((label, one) => {
      if (label !== lane.label[at]) return;
      amount += 1;
      total += lane.dur[one];
      if (lane.start[one] + lane.dur[one] > this.begin && lane.start[one] < this.end) {
        seen += 1;
        seenTime += lane.dur[one];
      }
    });
    this.summary.replaceChildren(
      h(
        "p",
        { class: "notice" },
        h("code", {}, this.timeline.names[lane.label[at]]),
        ` in ${lane.name}: ${count(amount, "event")}, ${time(total)} in all, ${time(total / amount)} on average; `,
        `${seen.toLocaleString("en-US")} of them with ${time(seenTime)} in sight.`,
      ),
    );
  }

  highlight(text) {
    const wanted = text.trim().toLowerCase();
    this.matches = wanted ? this.timeline.names.map((name) => name.toLowerCase().includes(wanted)) : null;
    this.later();
  }

  events() {
    const { canvas } = this;
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      drag = {
        x: event.clientX,
        begin: this.begin,
        end: this.end,
        moved: false,
        select: event.shiftKey,
        from: event.clientX - canvas.getBoundingClientRect().left,
      };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag) {
        this.say(this.at(event).found);
        return;
      }
      const dx = event.clientX - drag.x;
      if (Math.abs(dx) > 3) drag.moved = true;
      if (drag.select) {
        this.selection = [Math.max(LEFT, drag.from), Math.max(LEFT, drag.from + dx)];
        this.later();
      } else if (drag.moved) {
        const shift = (-dx * (drag.end - drag.begin)) / (this.width - LEFT);
        this.show(drag.begin + shift, drag.end + shift);
      }
    });
    canvas.addEventListener("pointerup", (event) => {
      if (drag && !drag.moved) this.sum(this.at(event).found);
      else if (drag && this.selection) {
        const [from, to] = this.selection.map((x) => this.ns(x)).sort((a, b) => a - b);
        this.selection = null;
        this.show(from, to);
      }
      drag = null;
    });
    canvas.addEventListener("pointercancel", () => ((drag = null), (this.selection = null), this.later()));
    canvas.addEventListener("pointerleave", () => drag || this.say(null));
    canvas.addEventListener("dblclick", (event) =>
      this.zoom(0.35, this.ns(event.clientX - canvas.getBoundingClientRect().left)),
    );
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.metaKey && Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return;
        event.preventDefault();
        if (event.ctrlKey || event.metaKey)
          this.zoom(Math.exp(event.deltaY * 0.004), this.ns(event.clientX - canvas.getBoundingClientRect().left));
        else this.move((event.deltaX * (this.end - this.begin)) / this.width);
        this.say(null);
      },
      { passive: false },
    );
    canvas.addEventListener("keydown", (event) => {
      const step = (this.end - this.begin) / 5;
      const actions = {
        "+": () => this.zoom(0.5),
        "=": () => this.zoom(0.5),
        "-": () => this.zoom(2),
        0: () => this.show(0, this.whole),
        ArrowLeft: () => this.move(-step),
        ArrowRight: () => this.move(step),
      };
      if (!Object.hasOwn(actions, event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      actions[event.key]();
      this.say(null);
    });
  }

  move(ns) {
    const shift = Math.max(-this.begin, Math.min(this.whole - this.end, ns));
    this.show(this.begin + shift, this.end + shift);
  }
}
