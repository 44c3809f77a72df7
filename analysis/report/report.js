// The page comes alive: figures are drawn when they come near the window, and what the reader chooses holds everywhere.

const root = document.documentElement;
const figures = [];

class PlotPanel {
  constructor(element, data) {
    Object.assign(this, { element, data, near: false, stale: true });
    this.plot = document.createElement("div");
    this.plot.className = "live";
    element.append(this.plot);
    element.panel = this;
  }
  async draw() {
    if (!this.near || !this.stale || this.element.hidden) return;
    this.stale = false;
    this.element.classList.add("drawn"); // shows the empty plot, whose width is then known
    const { data, layout } = plot(this.data, this.plot.clientWidth);
    this.plot.style.height = `${layout.height}px`;
    await Plotly.react(this.plot, data, layout, { displayModeBar: false, responsive: false, doubleClick: "reset" });
  }
  get empty() {
    const { lines, marks, heat } = this.data;
    return !heat && ![...lines, ...marks].some((it) => it.name && shown(it));
  }
}

// A factor on the visible stretch of both axes of every panel of a figure; 0 shows everything.
function zoom(figure, by) {
  for (const { plot: drawn, data } of figure.panels) {
    if (!drawn._fullLayout) continue;
    const change = {};
    for (const name of data.rows ? ["xaxis"] : ["xaxis", "yaxis"]) {
      const [from, to] = drawn._fullLayout[name].range.map(Number);
      const middle = (from + to) / 2, half = ((to - from) / 2) * by;
      if (by) change[`${name}.range`] = [middle - half, middle + half];
      else if (name === "yaxis" && data.y.range) change[`${name}.range`] = plot(data, drawn.clientWidth).layout.yaxis.range;
      else change[`${name}.autorange`] = true;
    }
    Plotly.relayout(drawn, change);
  }
}

function tools(figure) {
  const bar = document.createElement("div");
  bar.className = "tools";
  const add = (text, told, act) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: text, title: told });
    button.setAttribute("aria-label", `${told}: ${figure.data.title}`);
    button.addEventListener("click", act);
    bar.append(button);
  };
  if (figure.panels.some((p) => !p.data.heat)) {
    add("+", "zoom in", () => zoom(figure, 0.6));
    add("−", "zoom out", () => zoom(figure, 1 / 0.6));
    add("all", "show everything", () => zoom(figure, 0));
  }
  const whole = (act) => async () => {
    figure.panels.forEach((p) => (p.near = true));
    await Promise.all(figure.panels.map((p) => p.draw()));
    await act(figure);
  };
  add("SVG", "save as SVG", whole(saveSvg));
  add("PNG", "save as PNG", whole(savePng));
  add("CSV", "save the numbers as CSV", () => saveCsv(figure));
  figure.element.querySelector("figcaption").before(bar);
}

// Rows of hidden arms and other sizes go; the first that is left names its group.
function filterTables() {
  for (const table of document.querySelectorAll("table")) {
    const heads = Number(table.dataset.heads);
    let above = [];
    for (const row of table.tBodies[0].rows) {
      const { arm, size } = row.dataset;
      row.hidden = !shown({ arm: arm === undefined ? null : Number(arm), size: size === undefined ? null : Number(size) });
      if (row.hidden) continue;
      const texts = [...row.cells].slice(0, heads).map((c) => c.firstChild);
      let same = 0;
      while (same < heads - 1 && above[same] === texts[same].textContent) same += 1;
      texts.forEach((text, i) => text.classList.toggle("same", i < same));
      row.classList.toggle("first", same === 0 && heads > 1);
      above = texts.map((text) => text.textContent);
    }
  }
}

function update() {
  const boxes = [...document.querySelectorAll("input[name=arm]")];
  boxes.forEach((box) => (box.checked = !chosen.hidden.has(Number(box.value))));
  document.getElementById("counted").textContent = `${boxes.filter((b) => b.checked).length} of ${boxes.length}`;
  for (const button of document.querySelectorAll(".legend button")) {
    button.setAttribute("aria-pressed", String(!chosen.hidden.has(Number(button.dataset.arm))));
  }
  filterTables();
  for (const figure of figures) {
    for (const panel of figure.panels) {
      panel.element.hidden = !shown(panel.data) || panel.empty;
      panel.stale = true;
    }
    figure.element.classList.toggle("single", figure.panels.filter((p) => !p.element.hidden).length === 1);
  }
  return redraw();
}

const redraw = () => Promise.all(figures.flatMap((f) => f.panels.map((p) => p.draw())));
const restyle = () => {
  readColours();
  figures.forEach((f) => f.panels.forEach((p) => (p.stale = true)));
  return redraw();
};

function toggleArm(arm) {
  if (!chosen.hidden.delete(arm)) chosen.hidden.add(arm);
  update();
}

function listen() {
  const form = document.querySelector(".view form");
  form?.addEventListener("change", ({ target }) => {
    if (target.name === "arm") return toggleArm(Number(target.value));
    chosen[target.name] = target.value;
    update();
  });
  form?.addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("[data-all]")) {
    button.addEventListener("click", () => {
      chosen.hidden = new Set(button.dataset.all ? [] : choices.arms.map((_, i) => i).slice(1));
      update();
    });
  }
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => toggleArm(Number(button.dataset.arm)));
  }
  document.addEventListener("click", ({ target }) => {
    const open = document.querySelector(".arms[open]");
    if (open && !open.contains(target)) open.open = false;
  });
  document.addEventListener("keydown", ({ key }) => {
    const open = document.querySelector(".arms[open]");
    if (key === "Escape" && open) open.open = false;
  });
  let width = innerWidth, waiting;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar comes and goes
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(restyle, 150);
  });
}

function themes() {
  const button = document.getElementById("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");
  const other = () => (now() === "dark" ? "light" : "dark");
  const label = () => (button.textContent = `${other()} theme`);
  button.addEventListener("click", () => {
    root.dataset.theme = other();
    label();
    restyle();
  });
  dark.addEventListener("change", () => (label(), restyle()));
  label();
}

// On paper everything is open, and closed again afterwards.
function printing() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("main details:not([open])")];
    opened.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((details) => (details.open = false)));
}

// Plotly lies in the page compressed. Its hash is in the policy, so that it may run as a script of the page.
async function library(packed) {
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

async function start() {
  root.classList.add("scripted");
  if (innerWidth < 700) document.querySelector(".view")?.removeAttribute("open");
  themes();
  printing();
  listen();
  for (const element of document.querySelectorAll("figure")) {
    const data = JSON.parse(element.querySelector("script").textContent);
    const panels = [...element.querySelectorAll(".panel")].map((p, i) => new PlotPanel(p, data.panels[i]));
    figures.push({ element, data, panels });
  }
  const packed = document.getElementById("library").textContent;
  if (!packed || typeof DecompressionStream === "undefined") return; // the still pictures remain
  await library(packed);
  readColours();
  figures.forEach(tools);
  await update();
  const seen = new IntersectionObserver(
    (entries) => entries.forEach((entry) => {
      entry.target.panel.near = entry.isIntersecting;
      entry.target.panel.draw();
    }),
    { rootMargin: "600px" },
  );
  figures.forEach((f) => f.panels.forEach((p) => seen.observe(p.element)));
  root.classList.add("ready");
}

start();
