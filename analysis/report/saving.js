// A figure as a file: SVG and PNG as it is seen, with title and legend; CSV with its numbers.

function save(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const fileName = (figure, ending) => `${figure.data.title.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60)}.${ending}`;
const markup = (text) => plain(text).replace(/"/g, "&quot;");

// One SVG of the panels that are seen, in rows of the page's width, below title and legend.
async function svgOf(figure) {
  const gap = 16, top = [], parts = [];
  const panels = figure.panels.filter((p) => !p.element.hidden);
  const drawn = await Promise.all(panels.map((p) => Plotly.toImage(p.plot, { format: "svg", width: p.plot.clientWidth, height: p.plot.clientHeight })));
  const most = Math.max(...panels.map((p) => p.plot.clientWidth), figure.element.clientWidth);
  let x = 0, y = 28, row = 0, width = 360;
  for (const entry of figure.data.legend.filter((e) => !chosen.hidden.has(e.arm))) {
    const wide = 50 + entry.name.length * 7.2;
    if (x > 0 && x + wide > most) [x, y] = [0, y + 20];
    const base = entry.arm === 0;
    top.push(`<line x1="${x}" x2="${x + 32}" y1="${y + 8}" y2="${y + 8}" stroke="${colours.series[entry.c]}" stroke-width="${base ? 4.5 : 2}" ${base ? 'opacity=".6"' : ""} stroke-dasharray="${entry.dash}"/>`);
    top.push(`<text x="${x + 40}" y="${y + 12}" font-size="12">${markup(entry.name)}</text>`);
    x += wide;
    width = Math.max(width, x);
  }
  [x, y] = [0, y + 28];
  panels.forEach((panel, i) => {
    const w = panel.plot.clientWidth, h = panel.plot.clientHeight;
    if (x > 0 && x + w > most) [x, y, row] = [0, y + row + gap, 0];
    const inner = decodeURIComponent(drawn[i].slice(drawn[i].indexOf(",") + 1));
    parts.push(inner.replace(/^<svg/, `<svg x="${x}" y="${y}"`));
    width = Math.max(width, x + w);
    [x, row] = [x + w + gap, Math.max(row, h)];
  });
  const height = y + row + 8;
  const family = markup(getComputedStyle(document.body).fontFamily);
  return {
    width, height,
    text: `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="${family}" fill="${colours.ink}"><rect width="100%" height="100%" fill="${colours.paper}"/><text y="17" font-size="15" font-weight="600">${markup(figure.data.title)}</text>${top.join("")}${parts.join("")}</svg>`,
  };
}

async function saveSvg(figure) {
  save(fileName(figure, "svg"), (await svgOf(figure)).text, "image/svg+xml");
}

async function savePng(figure) {
  const { text, width, height } = await svgOf(figure), sharp = 2;
  const picture = new Image();
  picture.src = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  await picture.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width * sharp, height * sharp];
  const context = canvas.getContext("2d");
  context.scale(sharp, sharp);
  context.drawImage(picture, 0, 0);
  canvas.toBlob((blob) => save(fileName(figure, "png"), blob, "image/png"));
}

// A text that a spreadsheet takes for one: quoted, and none that begins as a formula does.
const cell = (value) => {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  return `"${(/^[=+\-@\t\r]/.test(value) ? `'${value}` : value).replace(/"/g, '""')}"`;
};

// The numbers of what is seen, in the chosen unit.
function csvOf(figure) {
  const rows = [["panel", "series", "size", "kind", "x", "y", "low", "high"]];
  for (const { data: panel, element } of figure.panels) {
    if (element.hidden) continue;
    for (const it of [...panel.lines, ...panel.marks].filter(shown)) {
      const by = factor(panel, it), size = choices.sizes[it.size ?? panel.size]?.name ?? "";
      const kind = it.shape ? "point" : it.name ? "line" : "guide";
      const ends = it.shape && !it.upright ? by : 1;
      it.x.forEach((x, i) => {
        const y = panel.rows ? panel.rows[Math.round(it.y[i])] : it.y[i];
        const [low, high] = ["low", "high"].map((end) => it[end]?.[i] ?? null).map((v) => (v === null ? null : v * ends));
        rows.push([panel.title, it.name, size, kind, x === null ? null : x * by, y, low, high]);
      });
    }
    panel.heat?.values.forEach((row, i) =>
      row.forEach((z, j) => rows.push([panel.title, panel.heat.names[i], panel.heat.names[j], "cell", j, i, z, z])));
  }
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

const saveCsv = (figure) => save(fileName(figure, "csv"), csvOf(figure), "text/csv");
