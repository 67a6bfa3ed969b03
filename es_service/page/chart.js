// A small SVG chart: lines, dots, bands and level lines over generations, read with the pointer or the arrow keys.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 8, right: 12, bottom: 34, left: 52 };
const LABEL_WIDTH = 62; // for the names of the levels, where there is room
const LABEL_GAP = 14;
const KEYS = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity };

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// Round values from low to high, about `count` of them.
export function ticks(low, high, count) {
  const least = (high - low) / (1.4 * Math.max(1, count)) || 1;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= least) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  const found = [];
  for (let n = first; n * step <= high + step * 1e-9; n++) found.push(n * step || 0); // never -0
  return found;
}

// Heights in order, moved down where they would lie closer than the gap.
function spread(heights) {
  let last = -Infinity;
  return heights.map((height) => (last = Math.max(height, last + LABEL_GAP)));
}

export class Chart {
  // `label`: what a screen reader says. `format`: text of a tick. `domain(values)`: [low, high] of the y axis.
  // `onCursor(x)`: the reader points at generation x, or at none (null). `say(x)`: what there is to say of it.
  constructor(host, { label, format, domain, onCursor, say }) {
    Object.assign(this, { format, domain, onCursor, say, series: [], levels: [], xs: [], cursor: null });
    this.root = svg("svg", { role: "slider", tabindex: 0, "aria-label": `${label}; arrow keys read the values`, "aria-valuemin": 0, "aria-valuemax": 0, "aria-valuenow": 0, "aria-valuetext": "no values yet" });
    host.append(this.root);
    new ResizeObserver(() => this.draw()).observe(host);
    this.root.addEventListener("pointermove", (event) => this.point(event));
    this.root.addEventListener("pointerleave", () => document.activeElement !== this.root && this.onCursor(null));
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("blur", () => this.onCursor(null));
  }

  // series: {name, kind: "line" | "dots" | "band", points: [[x, y] or [x, low, high]]}; levels: {name, value}; xs: all x.
  set(series, levels, xs) {
    Object.assign(this, { series, levels, xs });
    this.draw();
  }

  point(event) {
    if (!this.xs.length || !this.scale) return;
    const wanted = this.scale.generation(event.clientX - this.root.getBoundingClientRect().left);
    this.onCursor(this.xs[nearest(this.xs, wanted)]);
  }

  key(event) {
    if (event.key === "Escape") this.onCursor(null);
    if (!(event.key in KEYS) || !this.xs.length) return;
    event.preventDefault();
    const last = this.xs.length - 1;
    const now = this.cursor === null ? last + (KEYS[event.key] < 0 ? 1 : 0) : nearest(this.xs, this.cursor);
    this.onCursor(this.xs[Math.min(last, Math.max(0, now + KEYS[event.key]))]);
  }

  showCursor(x) {
    this.cursor = x;
    this.mark();
  }

  draw() {
    const { width, height } = this.root.getBoundingClientRect();
    if (!width || !height) return;
    const labels = this.levels.length && width >= 520 ? LABEL_WIDTH : 0;
    const right = width - MARGIN.right - labels;
    const bottom = height - MARGIN.bottom;
    const [low, high] = this.domain([...this.series.flatMap((one) => one.points.flatMap((p) => p.slice(1))), ...this.levels.map((one) => one.value)]);
    const firstX = this.xs[0] ?? 0;
    const lastX = Math.max(this.xs.at(-1) ?? 1, firstX + 1);
    const x = (g) => MARGIN.left + ((g - firstX) / (lastX - firstX)) * (right - MARGIN.left);
    const y = (value) => bottom - ((value - low) / (high - low || 1)) * (bottom - MARGIN.top);
    const generation = (pixel) => firstX + ((pixel - MARGIN.left) / (right - MARGIN.left)) * (lastX - firstX);
    this.scale = { x, y, right, bottom, generation };
    this.marker = svg("g");
    this.root.replaceChildren(
      ...this.axes(low, high, firstX, lastX), ...this.series.flatMap((one) => this.shapes(one)), ...this.levelLines(labels), this.marker,
    );
    this.mark();
  }

  axes(low, high, firstX, lastX) {
    const { x, y, right, bottom } = this.scale;
    const nodes = [];
    for (const value of ticks(low, high, Math.min(6, (bottom - MARGIN.top) / 26))) {
      nodes.push(svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }));
      nodes.push(svg("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, this.format(value)));
    }
    for (const value of ticks(firstX, lastX, (right - MARGIN.left) / 90).filter(Number.isInteger)) {
      nodes.push(svg("text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, value.toLocaleString("en")));
    }
    nodes.push(svg("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }));
    nodes.push(svg("text", { x: right, y: bottom + 31, "text-anchor": "end" }, "generation"));
    return nodes;
  }

  shapes({ name, kind, points }) {
    const { x, y } = this.scale;
    const at = (g, value) => `${x(g).toFixed(1)},${y(value).toFixed(1)}`;
    if (kind === "band") {
      const edge = [...points.map(([g, low]) => at(g, low)), ...points.toReversed().map(([g, , high]) => at(g, high))];
      return [svg("polygon", { class: `band ${name}`, points: edge.join(" ") })];
    }
    const line = svg("polyline", { class: `line ${name}`, points: points.map(([g, value]) => at(g, value)).join(" ") });
    if (kind !== "dots" || points.length > 60) return [line];
    return [line, ...points.map(([g, value]) => svg("circle", { class: name, cx: x(g), cy: y(value), r: 3 }))];
  }

  levelLines(labels) {
    const { y, right } = this.scale;
    const sorted = this.levels.toSorted((a, b) => b.value - a.value);
    const heights = spread(sorted.map((level) => y(level.value)));
    return sorted.flatMap(({ name, value }, n) => [
      svg("line", { class: `level ${name}`, x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }),
      ...(labels ? [svg("text", { class: name, x: right + 6, y: heights[n] + 4 }, name)] : []),
    ]);
  }

  mark() {
    const last = Math.max(0, this.xs.length - 1);
    const shown = this.cursor === null ? last : nearest(this.xs, this.cursor);
    this.root.setAttribute("aria-valuemax", last);
    this.root.setAttribute("aria-valuenow", shown);
    if (this.xs.length) this.root.setAttribute("aria-valuetext", this.say(this.xs[shown]));
    if (!this.marker) return;
    const { x, bottom } = this.scale;
    const place = this.cursor === null ? null : x(this.cursor);
    this.marker.replaceChildren(...(place === null ? [] : [svg("line", { class: "cursor", x1: place, x2: place, y1: MARGIN.top, y2: bottom })]));
  }
}

// Index of the value nearest to `wanted` in a sorted array.
export function nearest(values, wanted) {
  let low = 0;
  let high = values.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low > 0 && wanted - values[low - 1] <= values[low] - wanted ? low - 1 : low;
}
