// The frame: header, routes (#/, #/test/3, #/gallery/3/7, #/compare), theme and keys.

const KEYS = [
  ["/", "search"],
  ["j k", "next, previous"],
  ["[ ]", "previous, next test"],
  ["Esc", "back"],
  ["?", "these keys"],
];

let active = {};

function routeOf(hash) {
  const [name, ...rest] = hash.replace(/^#\/?/, "").split("/").map(decodeURIComponentSafely);
  return { name: name || "overview", arguments: rest };
}

function decodeURIComponentSafely(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function show() {
  const route = routeOf(location.hash);
  const view = Object.hasOwn(views, route.name) && views[route.name].render ? views[route.name] : views.overview;
  const main = document.getElementById("main");
  while (cleanups.length) cleanups.pop()();
  main.replaceChildren();
  main.className = `view-${view === views.overview ? "overview" : route.name}`;
  active = view.render(main, route.arguments) || {};
  document.title = `${view.title(route.arguments)} · ${block("overview").name} · llmprof`;
  for (const link of document.querySelectorAll("header nav a"))
    if (link.getAttribute("href") === (location.hash || "#/")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
}

let shownHash = location.hash;

function go() {
  const from = shownHash.replace("#/gallery/", "#/test/").split("/").slice(0, 3).join("/");
  shownHash = location.hash;
  show();
  scrollTo(0, 0);
  // Back in a list the reader goes on from the test that they looked at.
  const item = document.querySelector(`main [data-item][href="${CSS.escape(from)}"]`);
  if (item) item.focus();
}

function header() {
  const data = block("overview");
  document.getElementById("header").append(
    h("a", { class: "brand", href: "#/" }, "llmprof", h("span", {}, data.name)),
    h(
      "nav",
      { "aria-label": "Views" },
      h("a", { href: "#/" }, "Tests"),
      data.compared && views.compare ? h("a", { href: "#/compare" }, "Comparison") : null,
    ),
    h("button", { type: "button", class: "quiet", "aria-label": "Keys", title: "Keys (?)", onclick: toggleKeys }, "?"),
    h(
      "button",
      {
        type: "button",
        class: "quiet",
        "aria-label": "Light or dark",
        title: "Light or dark",
        id: "theme",
        onclick: toggleTheme,
      },
      "◐",
    ),
  );
}

// -- theme: the system's, until the reader chooses

function stored(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch {
    // a browser may forbid it for pages from the disk: the choice then lasts as long as the page
  }
  return null;
}

function applyTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}

function toggleTheme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  applyTheme(dark ? "light" : "dark");
  stored("llmprof-theme", document.documentElement.dataset.theme);
  show();
}

// -- keys

function toggleKeys() {
  const open = document.getElementById("keys");
  if (open) {
    open.remove();
    return;
  }
  document.body.append(
    h(
      "div",
      { id: "keys", role: "dialog", "aria-label": "Keys" },
      h(
        "dl",
        {},
        KEYS.map(([keys, meaning]) => [
          h(
            "dt",
            {},
            keys.split(" ").map((key) => h("kbd", {}, key)),
          ),
          h("dd", {}, meaning),
        ]),
      ),
    ),
  );
}

function moveFocus(step) {
  const items = [...document.querySelectorAll("main [data-item]")];
  if (!items.length) return;
  const at = items.indexOf(document.activeElement);
  items[Math.max(0, Math.min(items.length - 1, at < 0 ? 0 : at + step))].focus();
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest && event.target.closest("input, select, textarea");
  if (event.key === "Escape") {
    if (document.getElementById("keys")) toggleKeys();
    else if (typing) event.target.blur();
    else if (active.up) location.hash = active.up;
    return;
  }
  if (typing) return;
  const own = active.keys && active.keys[event.key];
  if (own) {
    event.preventDefault();
    own();
  } else if (event.key === "/") {
    const search = document.querySelector("[data-search]") || document.querySelector("main input[type=search]");
    if (search) {
      event.preventDefault();
      search.focus();
    }
  } else if (event.key === "?") toggleKeys();
  else if (event.key === "j" || event.key === "k") moveFocus(event.key === "j" ? 1 : -1);
});

addEventListener("hashchange", go);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
applyTheme(stored("llmprof-theme"));
base = block("overview").base;
header();
show();
document.documentElement.dataset.ready = "";
