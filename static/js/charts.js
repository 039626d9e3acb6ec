// A page of panels: what is on screen is fetched, many keys in one request, each as wide as its panel; live runs are asked only for what is new.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const BATCH = 24;
  const LIVE_MS = 3000;
  const MOST_RANKS = 512;

  // "0, 4-7" as numbers; null for what is no such list.
  Encore.someRanks = (text) => {
    const ranks = new Set();
    for (const part of (text || "").split(/[\s,]+/).filter(Boolean)) {
      const found = /^(\d{1,7})(?:-(\d{1,7}))?$/.exec(part);
      if (!found) return null;
      for (let rank = Number(found[1]); rank <= Number(found[2] ?? found[1]) && ranks.size < MOST_RANKS; rank += 1) ranks.add(rank);
    }
    return ranks.size ? [...ranks].sort((a, b) => a - b) : null;
  };

  class Board {
    constructor(root) {
      this.root = root;
      this.runs = JSON.parse(root.dataset.runs);
      this.byId = new Map(this.runs.map((run) => [run.id, run]));
      this.rankNames = JSON.parse(root.dataset.rankNames || "{}");
      this.hiddenRuns = new Set();
      this.panels = new Map();
      this.queue = new Set();
      this.live = root.dataset.live === "1";
      this.generation = 0;
      this.group = `sync-${root.id || "charts"}`;
      this.readState();
      this.seen = new IntersectionObserver((entries) => {
        for (const entry of entries) {
          const panel = this.panels.get(entry.target);
          panel.visible = entry.isIntersecting;
          if (panel.visible && panel.generation !== this.generation) this.want(panel);
        }
      }, { rootMargin: "240px 0px" });
      this.sized = new ResizeObserver((entries) => {
        for (const entry of entries) {
          const panel = this.panels.get(entry.target.closest("[data-chart]"));
          if (panel && Math.abs(entry.contentRect.width - panel.width) > 1) { panel.width = entry.contentRect.width; panel.chart.resize(); }
        }
      });
      this.adopt();
      this.bind();
      this.showState();
      if (this.live) setInterval(() => this.poll(), LIVE_MS);
      document.addEventListener("encore:theme", () => this.repaint());
    }

    adopt() {
      for (const element of this.root.querySelectorAll("[data-chart]")) {
        if (this.panels.has(element)) continue;
        const plot = element.querySelector(".plot");
        const panel = { element, key: element.dataset.chart, plot, visible: false, generation: -1, answer: [], width: 0, cursor: null };
        panel.chart = new Encore.Chart(plot, {
          x: this.state.x, log: this.state.log, smooth: this.state.smooth, unit: Encore.unit(panel.key), group: this.group, out: element.querySelector("output"),
          marks: element.dataset.marks ? JSON.parse(element.dataset.marks) : [],
          height: Number(element.dataset.height) || 204,
          onZoom: (from, to) => this.change({ from, to }),
          onReset: () => this.change({ from: null, to: null }),
        });
        this.panels.set(element, panel);
        this.seen.observe(element);
        this.sized.observe(plot);
        element.querySelector("[data-expand]")?.addEventListener("click", () => {
          const wide = element.classList.toggle("wide");
          panel.chart.set(this.lines(panel), { height: wide ? Math.max(320, Math.round(window.innerHeight * 0.6)) : 204 });
          panel.chart.resize();
          element.scrollIntoView({ block: "nearest" });
        });
      }
    }

    // ---- state: in the URL, so that a link shows what the sender saw
    readState() {
      const url = new URLSearchParams(window.location.search);
      this.plainX = this.root.dataset.plainX || "step";
      const number = (name) => (url.has(name) && url.get(name) !== "" && Number.isFinite(Number(url.get(name))) ? Number(url.get(name)) : null);
      this.state = {
        x: ["step", "relative", "wall"].includes(url.get("x")) ? url.get("x") : this.plainX,
        log: url.get("log") === "1",
        smooth: Math.min(0.99, Math.max(0, number("smooth") ?? 0)),
        from: number("from"),
        to: number("to"),
        ranks: ["all", "band"].includes(url.get("ranks")) ? url.get("ranks") : Encore.someRanks(url.get("ranks")) || "reduce",
        branch: url.get("branch") === "all" ? "all" : "current",
      };
    }

    showState() {
      const { state, root } = this;
      for (const button of root.querySelectorAll("[data-x]")) button.setAttribute("aria-pressed", String(button.dataset.x === state.x));
      for (const button of root.querySelectorAll("[data-ranks-mode]")) button.setAttribute("aria-pressed", String(button.dataset.ranksMode === state.ranks));
      root.querySelector("[data-branches]")?.setAttribute("aria-pressed", String(state.branch === "all"));
      root.querySelector("[data-log]")?.setAttribute("aria-pressed", String(state.log));
      const some = root.querySelector("[data-ranks-some]");
      if (some && document.activeElement !== some) some.value = Array.isArray(state.ranks) ? state.ranks.join(", ") : "";
      const range = root.querySelector("[data-smooth]");
      if (range) { range.value = state.smooth; root.querySelector("[data-smooth-value]").textContent = state.smooth ? state.smooth.toFixed(2) : "off"; }
      const reset = root.querySelector("[data-zoom-reset]");
      if (reset) reset.hidden = state.from === null && state.to === null;
      const url = new URL(window.location);
      const put = (name, value, rest) => (value === rest || value === null ? url.searchParams.delete(name) : url.searchParams.set(name, value));
      put("x", state.x, this.plainX);
      put("log", state.log ? "1" : null, null);
      put("smooth", state.smooth || null, null);
      put("from", state.from, null);
      put("to", state.to, null);
      put("ranks", Array.isArray(state.ranks) ? state.ranks.join(",") : state.ranks, "reduce");
      put("branch", state.branch, "current");
      history.replaceState(history.state, "", url);
    }

    change(part) {
      const fetchAgain = "x" in part || "from" in part || "ranks" in part || "branch" in part;
      if ("x" in part && part.x !== this.state.x) { part.from = null; part.to = null; }
      Object.assign(this.state, part);
      this.showState();
      if (!fetchAgain) return this.repaint();
      this.generation += 1;
      for (const panel of this.panels.values()) if (panel.visible) this.want(panel);
    }

    bind() {
      this.root.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (!button) return;
        if (button.dataset.x) this.change({ x: button.dataset.x });
        else if (button.dataset.ranksMode) this.change({ ranks: button.dataset.ranksMode });
        else if ("branches" in button.dataset) this.change({ branch: this.state.branch === "all" ? "current" : "all" });
        else if ("log" in button.dataset) this.change({ log: !this.state.log });
        else if ("zoomReset" in button.dataset) this.change({ from: null, to: null });
        else if ("retry" in button.dataset) this.want(this.panels.get(button.closest("[data-chart]")));
      });
      this.root.querySelector("[data-ranks-some]")?.addEventListener("change", (event) => {
        const ranks = Encore.someRanks(event.target.value);
        event.target.setAttribute("aria-invalid", String(!ranks && event.target.value.trim() !== ""));
        if (ranks || !event.target.value.trim()) this.change({ ranks: ranks || "reduce" });
      });
      this.root.querySelector("[data-smooth]")?.addEventListener("input", (event) => this.change({ smooth: Number(event.target.value) }));
      // Runs switched off in the legend (anywhere on the page) vanish from every panel.
      document.addEventListener("change", (event) => {
        const box = event.target.closest?.("[data-eye]");
        if (!box) return;
        if (box.checked) this.hiddenRuns.delete(box.value); else this.hiddenRuns.add(box.value);
        this.repaint();
      });
      // The verdict page's choice of metric.
      document.addEventListener("click", (event) => {
        const choice = event.target.closest?.("[data-show-key]");
        const panel = choice && this.panels.values().next().value;
        if (!panel) return;
        event.preventDefault();
        panel.key = choice.dataset.showKey;
        panel.element.dataset.chart = panel.key;
        panel.element.querySelector(".key-name").textContent = panel.key;
        panel.chart.options.unit = Encore.unit(panel.key);
        panel.chart.options.marks = choice.dataset.marks ? JSON.parse(choice.dataset.marks) : [];
        panel.ranks = choice.dataset.rank !== undefined && choice.dataset.rank !== "" ? [Number(choice.dataset.rank)] : null;
        document.querySelectorAll("[data-show-key]").forEach((other) => other.closest("tr")?.classList.toggle("selected", other === choice));
        this.generation += 1;
        this.want(panel);
      });
    }

    // ---- fetching
    want(panel) {
      panel.element.classList.add("loading");
      this.queue.add(panel);
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.flush(), 20);
    }

    query(panels, since) {
      const width = Math.max(...panels.map((panel) => panel.plot.clientWidth || 400));
      const { state } = this;
      return {
        runs: this.runs.map((run) => run.id),
        keys: [...new Set(panels.map((panel) => panel.key))],
        x: state.x, from: state.from, to: state.to,
        // Few runs: twice and more the pixels, so that small runs come exactly. Many: what the panel can show.
        buckets: Math.max(this.runs.length <= 8 ? 1000 : 100, Math.min(4000, Math.round(width - 68))),
        ranks: panels[0].ranks || state.ranks,
        since: since || null,
        arrays: ["min", "max", "mean", "steps", "odd"], // what is drawn
        branch: state.branch,
      };
    }

    async flush() {
      const waiting = [...this.queue].sort((a, b) => b.visible - a.visible);
      this.queue.clear();
      const size = Math.max(1, Math.min(BATCH, Math.ceil(240 / this.runs.length)));
      const batches = [];
      for (let i = 0; i < waiting.length; i += size) batches.push(waiting.slice(i, i + size));
      await Promise.all(batches.map((batch) => this.load(batch)));
    }

    async load(panels) {
      const { generation } = this;
      let answer;
      try {
        answer = await Encore.fetchSeries(this.query(panels));
      } catch (error) {
        for (const panel of panels) this.fail(panel, error);
        return;
      }
      if (generation !== this.generation) return;
      for (const panel of panels) {
        panel.generation = generation;
        panel.cursor = answer.cursor;
        panel.answer = answer.series.filter((one) => one.key === panel.key);
        this.paint(panel);
      }
    }

    async poll() {
      if (document.hidden || this.polling) return;
      const panels = [...this.panels.values()].filter((panel) => panel.visible && panel.generation === this.generation);
      if (!panels.length) return;
      this.polling = true;
      try {
        const groups = new Map();
        for (const panel of panels) groups.set(panel.cursor, [...(groups.get(panel.cursor) || []), panel]);
        for (const [cursor, group] of groups) {
          const fresh = await this.fresh(group, cursor);
          if (fresh.reset) { for (const panel of group) this.want(panel); continue; } // the run went back: what is drawn is no longer its history
          for (const panel of group) {
            const tails = fresh.series.filter((one) => one.key === panel.key);
            if (tails.length && !this.grow(panel, tails)) { this.want(panel); continue; }
            panel.cursor = fresh.cursor;
            if (tails.length) this.paint(panel);
          }
        }
        Encore.stale(false);
      } catch { Encore.stale(true); } finally { this.polling = false; }
    }

    // What came since; a cursor that this server does not know (it was renewed) is answered like a run that went back.
    async fresh(group, cursor) {
      try {
        return await Encore.fetchSeries(this.query(group, cursor));
      } catch (error) {
        if (error.status === 400) return { reset: true, series: [] };
        throw error;
      }
    }

    // Put tails behind what is there, as long as every point is drawn; what has outgrown that is asked for as a whole.
    grow(panel, tails) {
      const most = this.query([panel]).buckets;
      const joined = [];
      for (const tail of tails) {
        const at = panel.answer.findIndex((one) => one.run === tail.run && one.rank === tail.rank && one.branch === tail.branch);
        const old = panel.answer[at];
        if (!old || !old.exact || !tail.exact || !old.steps || !tail.steps) return false;
        let keep = old.x.length;
        while (keep > 0 && old.x[keep - 1] >= tail.from) keep -= 1;
        if (keep + tail.x.length > most || Boolean(old.min) !== Boolean(tail.min)) return false;
        const join = (Type, a, b) => { const out = new Type(keep + b.length); out.set(a.subarray(0, keep)); out.set(b, keep); return out; };
        const x = join(Float64Array, old.x, tail.x);
        const y = join(Float64Array, old.y, tail.y);
        const lost = old.n - Math.round((old.n * keep) / (old.x.length || 1));
        let nan = 0;
        let inf = 0;
        for (const value of y) if (Number.isNaN(value)) nan += 1; else if (!Number.isFinite(value)) inf += 1;
        const band = old.min ? { min: join(Float64Array, old.min, tail.min), max: join(Float64Array, old.max, tail.max) } : {};
        joined.push([at, { ...old, ...band, x, y, steps: join(BigInt64Array, old.steps, tail.steps), n: old.n - lost + tail.n, drawn: x.length, nan, inf }]);
      }
      for (const [at, line] of joined) panel.answer[at] = line;
      return true;
    }

    fail(panel, error) {
      panel.element.classList.remove("loading");
      const note = panel.element.querySelector(".chart-note");
      note.textContent = `${error.message} `;
      const retry = document.createElement("button");
      retry.className = "btn";
      retry.dataset.retry = "";
      retry.textContent = "Try again";
      note.append(retry);
      note.hidden = false;
      panel.element.classList.toggle("kept", panel.answer.length > 0);
    }

    // ---- painting
    lines(panel) {
      const many = this.runs.length > 1;
      const lines = [];
      for (const one of panel.answer) {
        const run = this.byId.get(one.run);
        if (!run || one.error || this.hiddenRuns.has(run.id)) continue;
        const byRank = one.rank !== null && one.rank !== undefined && (this.state.ranks === "all" || Array.isArray(this.state.ranks) || panel.ranks);
        const index = many ? run.colour : byRank ? one.rank : 0;
        lines.push({
          ...one,
          colour: Encore.colour(index),
          dash: many && byRank && one.rank > 0 ? [2, 3] : Encore.dash(index),
          wide: run.wide,
          faint: one.branch !== undefined,
          label: [many ? run.name : "", byRank ? this.rankNames[one.rank] || `rank ${one.rank}` : "", one.branch ? `left by attempt ${one.branch}` : ""].filter(Boolean).join(" · "),
        });
      }
      return lines.sort((a, b) => b.faint - a.faint); // old branches lie under what counts
    }

    paint(panel) {
      const { state } = this;
      panel.element.classList.remove("loading", "kept");
      const lines = this.lines(panel);
      const zoomed = state.from !== null || state.to !== null;
      panel.chart.set(lines, { x: state.x, log: state.log, smooth: state.smooth, window: zoomed ? [state.from, state.to] : null });
      const note = panel.element.querySelector(".chart-note");
      const broken = panel.answer.find((one) => one.error);
      const drawn = lines.reduce((sum, line) => sum + Number(line.drawn), 0);
      const stored = lines.reduce((sum, line) => sum + Number(line.n), 0);
      const nan = lines.reduce((sum, line) => sum + Number(line.nan || 0), 0);
      const inf = lines.reduce((sum, line) => sum + Number(line.inf || 0), 0);
      note.hidden = lines.length > 0 && !broken;
      if (broken) note.textContent = broken.error;
      else if (!lines.length) note.textContent = panel.answer.length ? "All runs of this chart are switched off" : zoomed ? "No points in this range" : "No points yet";
      const foot = panel.element.querySelector(".drawn");
      if (foot) {
        const exact = lines.every((line) => line.exact);
        foot.textContent = !lines.length ? "" : exact ? `${stored.toLocaleString("en-US")} point${stored === 1 ? "" : "s"}` : `${drawn.toLocaleString("en-US")} of ${stored.toLocaleString("en-US")} points drawn`;
        foot.title = exact ? "Every point is drawn" : "Each pixel column shows the least, greatest and mean of its points; drag over a range to see every point";
      }
      const odd = panel.element.querySelector(".odd");
      if (odd) { odd.textContent = [nan ? `${nan} NaN` : "", inf ? `${inf} Inf` : ""].filter(Boolean).join(", "); odd.hidden = !nan && !inf; }
      panel.element.dataset.ready = "1";
    }

    repaint() {
      for (const panel of this.panels.values()) if (panel.generation >= 0) { panel.chart.destroy(); this.paint(panel); }
    }
  }

  Encore.boards = [];
  const start = () => { for (const root of document.querySelectorAll("[data-charts]:not([data-bound])")) { root.dataset.bound = "1"; Encore.boards.push(new Board(root)); } };
  document.addEventListener("DOMContentLoaded", start);
  document.addEventListener("htmx:afterSettle", () => { start(); Encore.boards.forEach((board) => board.adopt()); });
})();
