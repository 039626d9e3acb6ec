// A histogram at its step as bars, beside all steps as heat: a column a step, darker where more values lie. A click goes to that step.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const short = (n) => (n === 0 ? "0" : Math.abs(n) >= 1e4 || Math.abs(n) < 1e-3 ? n.toExponential(2) : String(Number(n.toPrecision(4))));
  const valid = (meta) => Array.isArray(meta?.counts) && Array.isArray(meta?.edges) && meta.edges.length === meta.counts.length + 1 && meta.counts.length > 0 && [...meta.counts, ...meta.edges].every((n) => typeof n === "number" && Number.isFinite(n));
  const cache = new Map();

  function canvasOf(figure, label) {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    figure.append(canvas);
    return canvas;
  }

  function sized(canvas) {
    const box = canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(box.width * ratio));
    canvas.height = Math.max(1, Math.round(box.height * ratio));
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    return { pen, width: canvas.width, height: canvas.height, ink: style.getPropertyValue("--c0").trim() || "#2f6fc0", line: style.getPropertyValue("--line-strong").trim() || "#888" };
  }

  function bars(canvas, meta) {
    const { pen, width, height, ink } = sized(canvas);
    const most = Math.max(1, ...meta.counts);
    const low = meta.edges[0];
    const span = meta.edges.at(-1) - low || 1;
    pen.fillStyle = ink;
    meta.counts.forEach((count, i) => {
      const x = ((meta.edges[i] - low) / span) * width;
      const w = ((meta.edges[i + 1] - meta.edges[i]) / span) * width;
      const h = (count / most) * (height - 4);
      pen.fillRect(x, height - h, Math.max(1, w - 1), h);
    });
    canvas.dataset.painted = "1";
  }

  function heat(canvas, found, here) {
    const { pen, width, height, ink, line } = sized(canvas);
    const good = found.filter((one) => valid(one.meta));
    if (!good.length) return null;
    const low = Math.min(...good.map((one) => one.meta.edges[0]));
    const high = Math.max(...good.map((one) => one.meta.edges.at(-1)));
    const span = high - low || 1;
    const w = width / good.length;
    pen.fillStyle = ink;
    good.forEach((one, i) => {
      const { counts, edges } = one.meta;
      // By density, so that wide bins are no darker than narrow ones; the square root lets thin tails be seen.
      const density = counts.map((count, k) => count / (edges[k + 1] - edges[k] || 1));
      const most = Math.max(...density) || 1;
      counts.forEach((count, k) => {
        if (!count) return;
        const top = height - ((edges[k + 1] - low) / span) * height;
        const bottom = height - ((edges[k] - low) / span) * height;
        pen.globalAlpha = 0.08 + 0.92 * Math.sqrt(density[k] / most);
        pen.fillRect(Math.floor(i * w), top, Math.ceil(w), Math.max(1, bottom - top));
      });
    });
    pen.globalAlpha = 1;
    const at = good.findIndex((one) => one.step === here);
    if (at >= 0) { pen.strokeStyle = line; pen.lineWidth = 2; pen.strokeRect(Math.floor(at * w) + 1, 1, Math.max(2, Math.ceil(w) - 2), height - 2); }
    canvas.dataset.painted = String(good.length);
    return { good, low, high };
  }

  Encore.mediaHistogram = (item, at) => {
    const make = Encore.mediaMake;
    if (!valid(item.meta)) return make("p", "media-note", "This histogram is broken: its edges and counts do not fit.");
    const root = make("div", "media-heat");
    const over = make("figure");
    const now = make("figure");
    const heatCanvas = canvasOf(over, `Histograms of ${at.key} over steps`);
    const barCanvas = canvasOf(now, `Histogram of ${at.key} at step ${item.step}`);
    const overFoot = make("figcaption");
    const nowFoot = make("figcaption");
    const { edges, counts, n, not_finite: odd } = item.meta;
    nowFoot.append(make("span", "", short(edges[0])), make("span", "", `${(n ?? counts.reduce((a, b) => a + b, 0)).toLocaleString("en")} values${odd ? `, ${odd.toLocaleString("en")} NaN or infinite` : ""}`), make("span", "", short(edges.at(-1))));
    over.append(overFoot);
    now.append(nowFoot);
    root.append(over, now);
    if (at.steps.length < 2) over.hidden = true;
    let seen = null;
    const paint = async () => {
      bars(barCanvas, item.meta);
      if (over.hidden) return;
      const name = `${at.run.id} ${at.key} ${item.rank} ${at.steps.length}`;
      if (!cache.has(name)) cache.set(name, Encore.mediaJson(Encore.mediaApi(at.run.id, "/spread", { key: at.key, rank: item.rank, limit: 200 })));
      try {
        const found = (await cache.get(name)).results;
        seen = heat(heatCanvas, found, item.step);
        if (seen) overFoot.replaceChildren(make("span", "", `step ${seen.good[0].step.toLocaleString("en")}`), make("span", "", `${short(seen.low)} … ${short(seen.high)}`), make("span", "", `step ${seen.good.at(-1).step.toLocaleString("en")}`));
      } catch (error) { cache.delete(name); overFoot.textContent = error.message; }
    };
    heatCanvas.addEventListener("click", (event) => {
      if (!seen) return;
      const box = heatCanvas.getBoundingClientRect();
      at.seek(seen.good[Math.min(seen.good.length - 1, Math.floor(((event.clientX - box.left) / box.width) * seen.good.length))].step);
    });
    let width = 0;
    new ResizeObserver(() => { const next = root.clientWidth; if (next && next !== width) { width = next; paint(); } }).observe(root);
    new MutationObserver(paint).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    return root;
  };
})();
