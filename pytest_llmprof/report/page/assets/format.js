// Numbers and names as a reader sees them.

/** About three digits: "0.0123", "1.23", "45.6", "1,234". */
function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 99.95 || size === 0) {
    const rounded = Math.round(value);
    return integer(rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded); // a half to even, as in the reports
  }
  let digits = 1;
  while (digits < 9 && size < 9.995 * 10 ** (1 - digits)) digits += 1;
  return value.toFixed(digits);
}

/** A share of 0..1 as "12.3 %". */
function percent(share) {
  return share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)} %`;
}

/** A ratio as a change: "+2.1 %". */
function change(ratio) {
  if (ratio === null || ratio === undefined) return "";
  const part = 100 * (ratio - 1);
  return ratio >= 100 ? "over 100 x" : `${part >= 0 ? "+" : "−"}${Math.abs(part).toFixed(1)} %`;
}

/** Two ratios as a range of changes: "+1.2 to +3.0 %", "−40.0 % to over 100 x". */
function changeRange(low, high) {
  const last = change(high);
  return `${last.endsWith("%") ? change(low).replace(" %", "") : change(low)} to ${last}`;
}

/** A count: "1,234". */
function integer(amount) {
  return amount === null || amount === undefined ? "–" : amount.toLocaleString("en-US");
}

function count(amount, thing, plural = `${thing}s`) {
  return `${integer(amount)} ${amount === 1 ? thing : plural}`;
}

/** "45 s", "3 min 20 s". */
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${number(seconds)} s`;
  const whole = Math.round(seconds);
  return whole < 3600
    ? `${Math.floor(whole / 60)} min ${whole % 60} s`
    : `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** Nanoseconds with a fitting unit. */
function time(ns) {
  if (ns === 0) return "0";
  if (Math.abs(ns) < 1e3) return `${Math.round(ns)} ns`;
  if (Math.abs(ns) < 1e6) return `${number(ns / 1e3)} µs`;
  return Math.abs(ns) < 1e9 ? `${number(ns / 1e6)} ms` : `${number(ns / 1e9)} s`;
}

/** A node id without its stage: {file, name}. */
function testName(row) {
  const [file, ...rest] = row.id.split("::");
  const name = rest.join("::") || file;
  const short = name.endsWith(`-${row.stage}]`)
    ? `${name.slice(0, -row.stage.length - 2)}]`
    : name.endsWith(`[${row.stage}]`)
      ? name.slice(0, -row.stage.length - 2)
      : name;
  return { file: rest.length ? file : "", name: short };
}

/** The largest of *values*; 0 without any. A call with many arguments fails where there are very many. */
function largest(values) {
  return values.reduce((most, value) => (value > most ? value : most), 0);
}

function median(values) {
  const known = values.filter((value) => value !== null && value !== undefined).sort((a, b) => a - b);
  if (!known.length) return null;
  const middle = known.length >> 1;
  return known.length % 2 ? known[middle] : (known[middle - 1] + known[middle]) / 2;
}

function dateText(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return iso;
  return `${date.toISOString().slice(0, 16).replace("T", " ")} UTC`;
}

const OUTCOMES = {
  passed: ["✓", "good"],
  failed: ["✕", "bad"],
  skipped: ["–", "quiet"],
  interrupted: ["!", "warn"],
  running: ["…", "warn"],
};

/** "✓ passed": told by sign and word, not by colour alone. */
function outcomeBadge(outcome) {
  const [sign, kind] = OUTCOMES[outcome] || ["?", "quiet"];
  return h("span", { class: `badge ${kind}` }, h("span", { "aria-hidden": "true" }, sign), ` ${outcome}`);
}

/** Black or white, whichever is read more easily on *hex* (WCAG's relative luminance; both are alike at 0.179). */
function inkOn(hex) {
  const [red, green, blue] = [1, 3, 5]
    .map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 ? "#fff" : "#000";
}
