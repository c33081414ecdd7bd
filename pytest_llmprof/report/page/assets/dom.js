// Elements made of data. Data only ever becomes text nodes and attributes set here, never HTML; `fromSafeHtml` alone
// takes HTML, from fields whose names end in "_html", which safe_html.py has made.

const views = {};

/** An element. Attributes: `class`, `on*` functions, `style` as an object, anything else as it is; true is "". */
function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** An element of SVG. */
function s(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

let base = "";

/** How the page links to a file of the run. */
function fileUrl(...parts) {
  return base + parts.join("/").split("/").map(encodeURIComponent).join("/");
}

/** HTML of safe_html.py; its links to files of the run start where the run lies. */
function fromSafeHtml(text) {
  const template = document.createElement("template");
  template.innerHTML = text;
  for (const element of template.content.querySelectorAll("[data-file]")) {
    const name = element.tagName === "IMG" ? "src" : "href";
    element.setAttribute(name, base + element.getAttribute(name));
  }
  for (const table of template.content.querySelectorAll("table")) {
    const wrapper = h("div", { class: "scroll", tabindex: "0" });
    table.replaceWith(wrapper);
    wrapper.append(table);
  }
  return template.content;
}

const parsed = new Map();

/** A block of data by its name; null where the page has none. The last few stay parsed. */
function block(name) {
  if (!parsed.has(name)) {
    const element = document.getElementById(`data-${name}`);
    if (!element) return null;
    parsed.set(name, JSON.parse(element.textContent));
    if (parsed.size > 12) parsed.delete([...parsed.keys()].find((key) => key !== "overview"));
  }
  return parsed.get(name);
}

/** A block that may be packed: a text instead of an object is the base64 of its gzip. */
async function largeBlock(name) {
  const found = block(name);
  if (typeof found !== "string") return found;
  const bytes = Uint8Array.from(atob(found), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const value = JSON.parse(await new Response(stream).text());
  if (parsed.has(name)) parsed.set(name, value);
  return value;
}

/** What stands in the place of a large block that cannot be read. */
function unreadable(error) {
  const old = typeof DecompressionStream === "undefined";
  return h(
    "p",
    { class: "box bad" },
    old
      ? "This browser cannot unpack the data: use one of 2023 or later."
      : `The data cannot be read: ${error.message}`,
  );
}

/** The value of a colour of page.css, for what is drawn on a canvas. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A section with its heading; nothing without content. */
function section(title, ...children) {
  const there = children.flat(3).filter((child) => child !== null && child !== undefined && child !== false);
  return there.length ? h("section", {}, h("h2", {}, title), ...there) : null;
}

/**
 * Rows that are added as the reader comes to them, so that thousands cost nothing until then. What stands below a long
 * list would move away from the reader with each step: such a list has a box of its own that scrolls (class tall).
 */
class GrowingList {
  constructor(container, make, step = 120) {
    this.container = container;
    this.make = make;
    this.step = step;
    this.items = [];
    this.shown = 0;
    this.observer = new IntersectionObserver((entries) => entries.some((one) => one.isIntersecting) && this.grow(), {
      rootMargin: "1200px",
    });
    const whole = () => this.reach(2000);
    addEventListener("beforeprint", whole);
    cleanups.push(() => (this.observer.disconnect(), removeEventListener("beforeprint", whole)));
  }

  set(items) {
    this.items = items;
    this.shown = 0;
    this.container.replaceChildren();
    this.grow();
  }

  grow(until = this.shown + this.step) {
    this.observer.disconnect();
    const added = this.items.slice(this.shown, until).map((item, at) => this.make(item, this.shown + at));
    this.shown += added.length;
    this.container.append(...added);
    if (this.shown < this.items.length) this.observer.observe(this.container.lastElementChild);
  }

  /** Show at least the first *count* rows. */
  reach(count) {
    if (count > this.shown) this.grow(count);
  }
}

/** Run when the view is left. */
const cleanups = [];

/** A table whose columns sort. Columns: {title, value(item), cell(item), number, hint}; order: {column, direction}. */
function sortableTable(columns, items, { caption, order = null, step = 120, rowAttributes = () => ({}) } = {}) {
  const body = h("tbody");
  const list = new GrowingList(
    body,
    (item, at) =>
      h(
        "tr",
        rowAttributes(item, at),
        columns.map((column, index) =>
          h(
            index ? "td" : "th",
            { class: column.number ? "number" : null, scope: index ? null : "row" },
            column.cell(item),
          ),
        ),
      ),
    step,
  );
  const known = order && columns.find(({ title }) => title === order.column.title);
  let current = known ? { column: known, direction: order.direction } : null;
  const heads = columns.map((column) => {
    const button = h("button", { type: "button", class: "sort", title: column.hint || null }, column.title);
    button.addEventListener("click", () => {
      const first = column.number ? -1 : 1;
      current = { column, direction: current && current.column === column ? -current.direction : first };
      show();
    });
    return h("th", { class: column.number ? "number" : null, scope: "col" }, button);
  });
  const table = h("table", {}, h("caption", { class: "hidden" }, caption), h("thead", {}, h("tr", {}, heads)), body);
  let shownItems = items;
  function show() {
    heads.forEach((head, index) => {
      const sorted = current && current.column === columns[index];
      if (sorted) head.setAttribute("aria-sort", current.direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    list.set(current ? sortedBy(shownItems, current.column.value, current.direction) : shownItems);
  }
  show();
  return {
    element: h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table),
    list,
    order: () => current,
    setItems(next) {
      shownItems = next;
      show();
    },
  };
}

/** *items* by a value; those without one come last either way. */
function sortedBy(items, value, direction) {
  const keyed = items.map((item, at) => [value(item), at, item]);
  const missing = (one) => one === null || one === undefined || one === "" || Number.isNaN(one);
  keyed.sort(([a, i], [b, j]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b) || i - j;
    const compared = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return compared * direction || i - j;
  });
  return keyed.map(([, , item]) => item);
}

function debounced(action, milliseconds = 80) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}

/** A command, which wraps between its words alone: not after the hyphens of an option. */
function commandCode(text) {
  return h(
    "code",
    {},
    text.split(/( +)/).map((part) => (part.trim() ? h("span", {}, part) : part)),
  );
}

/** A button that copies *text*. Where the browser forbids it, the text is selected instead. */
function copyButton(text, source) {
  const button = h("button", { type: "button", class: "quiet" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}
