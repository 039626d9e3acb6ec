// data-heat="address": step time of each rank (rows) over the recent steps (columns), coloured by its ratio to the median of all ranks.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const LIVE_MS = 10000;
  const MOST_HEIGHT = 480;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

  function median(values) {
    const known = values.filter((value) => value !== null).sort((a, b) => a - b);
    return known.length ? known[known.length >> 1] : null;
  }

  class Heat {
    constructor(element) {
      this.element = element;
      this.canvas = element.querySelector("canvas");
      this.out = element.querySelector("output");
      this.canvas.addEventListener("mousemove", (event) => this.point(event));
      this.canvas.addEventListener("mouseleave", () => { this.out.textContent = ""; });
      new ResizeObserver(() => this.paint()).observe(element);
      document.addEventListener("encore:theme", () => this.paint());
      this.load();
      if (element.dataset.live === "1") setInterval(() => { if (!document.hidden && element.isConnected) this.load(); }, LIVE_MS);
    }

    async load() {
      try {
        const answer = await (await Encore.fetch(this.element.dataset.heat, { headers: { Accept: "application/json" } })).json();
        this.heat = answer.heat;
        this.usual = this.heat.steps.map((_, at) => median(this.heat.seconds.map((row) => row[at])));
        this.paint();
      } catch (error) { this.out.textContent = error.message; }
    }

    paint() {
      const { heat, canvas } = this;
      if (!heat || !heat.steps.length) return;
      const ratio = window.devicePixelRatio || 1;
      const rows = heat.ranks.length;
      const width = Math.max(1, this.element.clientWidth - 2);
      const height = Math.min(MOST_HEIGHT, Math.max(28, rows * Math.max(1, Math.min(16, Math.floor(MOST_HEIGHT / rows)))));
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
      const ctx = canvas.getContext("2d");
      const [ground, slow, quick] = [css("--sunk"), css("--c1"), css("--c0")].map(rgb);
      const [w, h] = [canvas.width / heat.steps.length, canvas.height / rows];
      ctx.clearRect(0, 0, canvas.width, canvas.height);
      // More ranks than pixels: the slowest of those that share one is what is seen.
      const order = rows * 1 > canvas.height ? [...heat.seconds.keys()].sort((a, b) => Math.max(...heat.seconds[a]) - Math.max(...heat.seconds[b])) : heat.seconds.keys();
      for (const row of order) {
        heat.seconds[row].forEach((value, at) => {
          if (value === null || !this.usual[at]) return;
          const share = Math.max(-1, Math.min(1, Math.log2(value / this.usual[at])));
          const to = share > 0 ? slow : quick;
          const mix = ground.map((part, n) => Math.round(part + (to[n] - part) * Math.min(1, Math.abs(share) * 1.4)));
          ctx.fillStyle = `rgb(${mix.join(",")})`;
          ctx.fillRect(Math.floor(at * w), Math.floor(row * h), Math.ceil(w), Math.max(1, Math.ceil(h) - (h > 6 * ratio ? 1 : 0)));
        });
      }
      canvas.dataset.painted = String(rows * heat.steps.length);
    }

    point(event) {
      if (!this.heat) return;
      const box = this.canvas.getBoundingClientRect();
      const at = Math.min(this.heat.steps.length - 1, Math.floor((event.clientX - box.left) / box.width * this.heat.steps.length));
      const row = Math.min(this.heat.ranks.length - 1, Math.floor((event.clientY - box.top) / box.height * this.heat.ranks.length));
      if (at < 0 || row < 0) return;
      const value = this.heat.seconds[row][at];
      const text = (seconds) => (seconds < 1 ? `${+(seconds * 1000).toPrecision(3)} ms` : `${+seconds.toPrecision(3)} s`);
      this.out.textContent = `rank ${this.heat.ranks[row]}, step ${this.heat.steps[at].toLocaleString("en-US")}: ${value === null ? "not known" : `${text(value)} (median ${text(this.usual[at])})`}`;
    }
  }

  const start = () => { for (const element of document.querySelectorAll("[data-heat]:not([data-bound])")) { element.dataset.bound = "1"; new Heat(element); } };
  document.addEventListener("DOMContentLoaded", start);
  document.addEventListener("htmx:afterSettle", start);
})();
