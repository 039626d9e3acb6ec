// One panel. uPlot gives axes, scales, cursor and selection; the lines are drawn here straight from the answer's typed arrays, each on its
// own x, so that fifty runs need no common axis, and a bucket's min and max always reach the canvas.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  Encore.colour = (index) => css(`--c${index % 10}`);
  Encore.dash = (index) => (index % 20 >= 10 ? [5, 4] : []);

  Encore.shortNumber = (value) => {
    if (Number.isNaN(value)) return "NaN";
    if (!Number.isFinite(value)) return value > 0 ? "Inf" : "-Inf";
    if (Number.isInteger(value) && Math.abs(value) < 1e6) return Object.is(value, -0) ? "-0" : value.toLocaleString("en-US");
    const size = Math.abs(value);
    if (size >= 1e6 || (size < 1e-4 && size > 0)) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
    return size >= 1e4 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(4)));
  };
  const grouped = (n) => Number(n).toLocaleString("en-US");
  const axisNumber = (value) => {
    const size = Math.abs(value);
    if (size >= 1e9) return `${+(value / 1e9).toPrecision(4)}G`;
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
    if (size > 0 && size < 1e-3) return value.toExponential(1).replace(".0e", "e");
    return String(+value.toPrecision(6));
  };
  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  const bytes = (value, tail, digits = 3) => {
    let [size, at] = [value, 0];
    while (Math.abs(size) >= 1024 && at < UNITS.length - 1) { size /= 1024; at += 1; }
    return `${+size.toPrecision(Math.abs(size) >= 1000 ? 4 : digits)} ${UNITS[at]}${tail}`;
  };
  // What a key's name says it counts: "" or how to write its values.
  Encore.unit = (key) => {
    const found = /(?:^|[/_.])bytes(_per_second|_per_s|\/s)?$/i.exec(key);
    return found ? (value) => bytes(value, found[1] ? "/s" : "", 4) : null;
  };
  // Ticks at powers of two times 1, 2 or 4, as bytes are read.
  const byteTicks = (low, high, most) => {
    let step = 2 ** Math.max(0, Math.ceil(Math.log2((high - low) / Math.max(1, most))));
    const ticks = [];
    for (let at = Math.ceil(low / step) * step; at <= high; at += step) ticks.push(at);
    return ticks;
  };
  const axisDuration = (seconds) => {
    const s = Math.abs(seconds);
    if (s < 60) return `${+seconds.toPrecision(3)}s`;
    if (s < 3600) return `${Math.floor(s / 60)}m${s % 60 ? `${Math.round(s % 60)}s` : ""}`;
    return `${Math.floor(s / 3600)}h${s % 3600 >= 60 ? `${Math.round(s % 3600 / 60)}m` : ""}`;
  };
  Encore.xText = (x, value) => x === "relative" ? Encore.duration(Math.max(0, value)) : x === "wall" ? new Date(value * 1000).toLocaleString() : `step ${grouped(value)}`;

  // Exponential mean with its start corrected; what is not finite neither moves nor stops it.
  Encore.smooth = (y, weight) => {
    const out = new Float64Array(y.length);
    let sum = 0;
    let mass = 0;
    for (let i = 0; i < y.length; i += 1) {
      if (!Number.isFinite(y[i])) { out[i] = NaN; continue; }
      sum = sum * weight + y[i] * (1 - weight);
      mass = mass * weight + (1 - weight);
      out[i] = sum / mass;
    }
    return out;
  };

  function nearest(x, at) {
    let low = 0;
    let high = x.length - 1;
    if (high < 0) return -1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (x[middle] < at) low = middle; else high = middle;
    }
    return Math.abs(x[low] - at) <= Math.abs(x[high] - at) ? low : high;
  }

  class Chart {
    // element: .plot; options: {x, log, smooth, height, group, onZoom(from, to), onReset(), out: the title's <output>, marks: [{x, text}]}
    constructor(element, options) {
      this.element = element;
      this.options = options;
      this.lines = [];
      this.plot = null;
      this.dot = null;
    }

    set(lines, options = {}) {
      const rebuild = !this.plot || ["x", "log", "height"].some((name) => name in options && options[name] !== this.options[name]);
      Object.assign(this.options, options);
      this.lines = lines.filter((line) => line.x && line.x.length);
      for (const line of this.lines) {
        line.base = line.mean || line.y;
        line.shown = this.options.smooth > 0 ? Encore.smooth(line.base, this.options.smooth) : line.base;
      }
      this.ranges();
      if (!this.lines.length) { this.destroy(); return; }
      if (rebuild) this.build(); else { this.plot.setData(this.ends(), true); }
    }

    ends() { return [[this.xs[0], this.xs[1]], [this.ys[0], this.ys[1]]]; }

    ranges() {
      let [left, right] = [Infinity, -Infinity];
      for (const { x } of this.lines) { left = Math.min(left, x[0]); right = Math.max(right, x[x.length - 1]); }
      if (this.options.window) [left, right] = this.options.window.map((value, i) => value ?? [left, right][i]);
      if (left === right) { left -= 0.5; right += 0.5; }
      let [low, high] = [Infinity, -Infinity];
      const log = this.options.log;
      for (const line of this.lines) {
        const tops = line.max || line.base;
        const feet = line.min || line.base;
        for (let i = 0; i < line.x.length; i += 1) {
          if (line.x[i] < left || line.x[i] > right) continue;
          if (feet[i] < low && Number.isFinite(feet[i]) && (!log || feet[i] > 0)) low = feet[i];
          if (tops[i] > high && Number.isFinite(tops[i]) && (!log || tops[i] > 0)) high = tops[i];
          // Under a log axis a bucket may reach below zero while its middle does not.
          if (log && line.base[i] > 0 && Number.isFinite(line.base[i])) { low = Math.min(low, line.base[i]); high = Math.max(high, line.base[i]); }
        }
      }
      if (low > high) [low, high] = log ? [0.1, 1] : [0, 1];
      if (log) { const pad = Math.max(1.02, (high / low) ** 0.05); low /= pad; high *= pad; } else {
        const pad = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.5;
        low -= pad; high += pad;
      }
      this.xs = [left, right];
      this.ys = [low, high];
    }

    build() {
      this.destroy();
      const { options } = this;
      const grid = { stroke: css("--grid"), width: 1 };
      const font = `11px ${css("--mono")}`;
      const axis = { stroke: css("--faint"), grid, ticks: { show: false }, font, gap: 4 };
      const relative = options.x === "relative";
      const unit = options.unit || null;
      this.plot = new uPlot({
        width: Math.max(120, this.element.clientWidth),
        height: options.height || 204,
        padding: [8, 12, 0, 0],
        legend: { show: false },
        scales: {
          x: { time: options.x === "wall", range: () => this.xs },
          y: { distr: options.log ? 3 : 1, range: () => this.ys },
        },
        axes: [
          { ...axis, size: 24, space: 64, ...(options.x === "wall" ? {} : { values: (_, all) => all.map(relative ? axisDuration : axisNumber) }) },
          {
            ...axis, size: unit ? 72 : 56, space: 32,
            values: (_, all) => all.map((value) => (value === null || value === undefined ? "" : unit ? unit(value) : axisNumber(value))),
            ...(unit && !options.log ? { splits: (u, _, low, high) => byteTicks(low, high, Math.floor(u.bbox.height / uPlot.pxRatio / 32)) } : {}),
          },
        ],
        series: [{}, { paths: () => null, points: { show: false } }],
        cursor: {
          y: false,
          points: { show: false },
          drag: { x: true, y: false, setScale: false, dist: 6 },
          sync: options.group ? { key: options.group, scales: ["x", null], setSeries: false } : undefined,
          bind: { dblclick: () => () => { options.onReset?.(); return null; } },
        },
        hooks: {
          draw: [() => this.draw()],
          setCursor: [() => this.point()],
          setSelect: [(u) => {
            if (u.select.width < 6) return;
            const from = u.posToVal(u.select.left, "x");
            const to = u.posToVal(u.select.left + u.select.width, "x");
            u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            options.onZoom?.(from, to);
          }],
        },
      }, this.ends(), this.element);
      this.dot = document.createElement("span");
      this.dot.className = "chart-dot";
      this.dot.hidden = true;
      this.plot.over.append(this.dot);
    }

    place(u) {
      const { left, top, width, height } = u.bbox;
      const [x0, x1] = this.xs;
      const kx = width / (x1 - x0);
      const px = (value) => left + (value - x0) * kx;
      let py;
      if (this.options.log) {
        const [a, b] = this.ys.map(Math.log10);
        py = (value) => (value > 0 ? top + height - (Math.log10(value) - a) / (b - a) * height : top + height);
      } else {
        const [a, b] = this.ys;
        py = (value) => top + height - (value - a) / (b - a) * height;
      }
      return { px, py, left, top, width, height };
    }

    draw() {
      const u = this.plot || null;
      if (!u) return;
      const { ctx } = u;
      const to = this.place(u);
      const ratio = uPlot.pxRatio;
      ctx.save();
      ctx.beginPath();
      ctx.rect(to.left - 4 * ratio, to.top, to.width + 8 * ratio, to.height); // a dot on the first or last step is drawn whole
      ctx.clip();
      ctx.lineJoin = "round";
      for (const line of this.lines) if (!line.hidden) this.band(ctx, line, to, ratio);
      for (const line of this.lines) if (!line.hidden) this.line(ctx, line, to, ratio);
      for (const line of this.lines) if (!line.hidden) this.odd(ctx, line, to, ratio);
      for (const line of this.lines) if (!line.hidden && line.fork_x !== undefined) this.fork(ctx, line, to, ratio);
      for (const mark of this.options.marks || []) {
        const x = Math.round(to.px(mark.x)) + 0.5;
        ctx.strokeStyle = ctx.fillStyle = css("--diverged");
        ctx.lineWidth = ratio;
        ctx.setLineDash([4 * ratio, 3 * ratio]);
        ctx.beginPath(); ctx.moveTo(x, to.top); ctx.lineTo(x, to.top + to.height); ctx.stroke();
        ctx.setLineDash([]);
        ctx.font = `${11 * ratio}px ${css("--sans")}`;
        ctx.textAlign = "left";
        ctx.textBaseline = "alphabetic";
        const wide = ctx.measureText(mark.text).width;
        ctx.fillText(mark.text, x + 5 * ratio + wide > to.left + to.width ? x - wide - 5 * ratio : x + 5 * ratio, to.top + 12 * ratio);
      }
      ctx.restore();
      this.element.dataset.painted = this.lines.reduce((sum, line) => sum + line.x.length, 0);
    }

    band(ctx, line, to, ratio) {
      if (!line.min || !line.max) return;
      ctx.fillStyle = ctx.strokeStyle = line.colour;
      const faint = this.options.smooth > 0 ? 0.5 : 1;
      let start = 0;
      const n = line.x.length;
      while (start < n) {
        while (start < n && !(line.min[start] <= line.max[start])) start += 1;
        let end = start;
        while (end < n && line.min[end] <= line.max[end]) end += 1;
        if (end > start) {
          ctx.beginPath();
          for (let i = start; i < end; i += 1) ctx.lineTo(to.px(line.x[i]), to.py(line.max[i]));
          for (let i = end - 1; i >= start; i -= 1) ctx.lineTo(to.px(line.x[i]), to.py(line.min[i]));
          ctx.closePath();
          ctx.globalAlpha = 0.16 * faint;
          ctx.fill();
          ctx.globalAlpha = 0.42 * faint;
          ctx.lineWidth = ratio;
          ctx.stroke();
        }
        start = end;
      }
      ctx.globalAlpha = 1;
    }

    stroke(ctx, x, y, to) {
      ctx.beginPath();
      let open = false;
      for (let i = 0; i < x.length; i += 1) {
        if (!Number.isFinite(y[i])) { open = false; continue; }
        if (open) ctx.lineTo(to.px(x[i]), to.py(y[i])); else { ctx.moveTo(to.px(x[i]), to.py(y[i])); open = true; }
      }
      ctx.stroke();
    }

    line(ctx, line, to, ratio) {
      ctx.strokeStyle = ctx.fillStyle = line.colour;
      ctx.setLineDash((line.dash || []).map((part) => part * ratio));
      if (this.options.smooth > 0 && !line.min) {
        ctx.globalAlpha = 0.28;
        ctx.lineWidth = ratio;
        this.stroke(ctx, line.x, line.base, to);
      }
      ctx.globalAlpha = line.faint ? 0.35 : line.wide ? 0.4 : 1;
      ctx.lineWidth = (line.wide ? 5 : 1.5) * ratio;
      this.stroke(ctx, line.x, line.shown, to);
      ctx.setLineDash([]);
      // Dots where a line alone would hide how few points there are, or would draw nothing at all.
      const roomy = line.x.length < to.width / (14 * ratio);
      const y = line.shown;
      ctx.beginPath();
      for (let i = 0; i < y.length; i += 1) {
        if (!Number.isFinite(y[i])) continue;
        const alone = !Number.isFinite(y[i - 1]) && !Number.isFinite(y[i + 1]);
        if (!roomy && !alone) continue;
        const [cx, cy] = [to.px(line.x[i]), to.py(y[i])];
        ctx.moveTo(cx + 2.2 * ratio, cy);
        ctx.arc(cx, cy, 2.2 * ratio, 0, 7);
      }
      ctx.fill();
      ctx.globalAlpha = 1;
    }

    // Where what a fork inherited ends and its own begins: a diamond on the line.
    fork(ctx, line, to, ratio) {
      const value = line.shown[nearest(line.x, line.fork_x)];
      if (!Number.isFinite(value)) return;
      const [x, y, r] = [to.px(line.fork_x), to.py(value), 4.5 * ratio];
      ctx.fillStyle = css("--ground");
      ctx.strokeStyle = line.colour;
      ctx.lineWidth = 1.5 * ratio;
      ctx.beginPath();
      ctx.moveTo(x, y - r); ctx.lineTo(x + r, y); ctx.lineTo(x, y + r); ctx.lineTo(x - r, y); ctx.closePath();
      ctx.fill();
      ctx.stroke();
    }

    // What has no height: NaN as a cross at the foot, Inf as an arrow at the edge it went through.
    odd(ctx, line, to, ratio) {
      const foot = to.top + to.height - 6 * ratio;
      ctx.strokeStyle = ctx.fillStyle = line.colour;
      ctx.lineWidth = 1.5 * ratio;
      const seen = [-Infinity, -Infinity, -Infinity];
      const mark = (at, value) => {
        const x = to.px(at);
        const kind = Number.isNaN(value) ? 0 : value > 0 ? 1 : 2;
        if (x - seen[kind] < 5 * ratio) return;
        seen[kind] = x;
        const r = 3 * ratio;
        ctx.beginPath();
        if (kind === 0) {
          ctx.moveTo(x - r, foot - r); ctx.lineTo(x + r, foot + r); ctx.moveTo(x + r, foot - r); ctx.lineTo(x - r, foot + r);
          ctx.stroke();
        } else {
          const y = kind === 1 ? to.top + 2 * ratio : to.top + to.height - 2 * ratio;
          const by = kind === 1 ? 2 * r : -2 * r;
          ctx.moveTo(x, y); ctx.lineTo(x - r, y + by); ctx.lineTo(x + r, y + by); ctx.closePath();
          ctx.fill();
        }
      };
      // Of buckets the server says where the first and last of each kind are: one NaN among many numbers shows in no mean.
      if (line.odd_kind) {
        for (let i = 0; i < line.odd_kind.length; i += 1) {
          const value = [NaN, Infinity, -Infinity][line.odd_kind[i] - 1];
          mark(line.odd_first[i], value);
          mark(line.odd_last[i], value);
        }
        return;
      }
      for (let i = 0; i < line.x.length; i += 1) if (!Number.isFinite(line.base[i])) mark(line.x[i], line.base[i]);
    }

    point() {
      const u = this.plot;
      const { out, x } = this.options;
      if (!u || !this.dot) return;
      const { left, top } = u.cursor;
      if (left === null || left < 0) { this.dot.hidden = true; if (out) out.textContent = ""; return; }
      const at = u.posToVal(left, "x");
      const own = u.cursor.event && u.over.matches(":hover");
      let best = null;
      for (const line of this.lines) {
        if (line.hidden) continue;
        const i = nearest(line.x, at);
        if (i < 0) continue;
        const value = line.shown[i];
        const y = Number.isFinite(value) ? u.valToPos(value, "y") : u.over.clientHeight;
        const far = own ? Math.abs(y - top) + Math.abs(u.valToPos(line.x[i], "x") - left) * 2 : Math.abs(line.x[i] - at);
        if (!best || far < best.far) best = { line, i, value, y, far };
      }
      if (!best) return;
      const { line, i, value, y } = best;
      this.dot.hidden = !Number.isFinite(value);
      this.dot.style.transform = `translate(${u.valToPos(line.x[i], "x")}px, ${y}px)`;
      this.dot.style.background = line.colour;
      if (!out) return;
      const step = line.steps ? `step ${grouped(line.steps[i])}` : Encore.xText(x, line.x[i]);
      const short = (of) => (this.options.unit && Number.isFinite(of) ? this.options.unit(of) : Encore.shortNumber(of));
      const raw = this.lines.length === 1 && this.options.smooth > 0 && line.base[i] !== value ? ` (${short(line.base[i])})` : "";
      const band = this.lines.length === 1 && line.min && line.min[i] < line.max[i] ? ` [${short(line.min[i])}, ${short(line.max[i])}]` : "";
      out.textContent = "";
      if (line.label && this.lines.length > 1) {
        const name = document.createElement("span");
        name.className = "who";
        name.textContent = line.label;
        name.style.color = line.colour;
        out.append(name);
      }
      const number = document.createElement("b");
      number.textContent = short(value);
      out.append(number, `${raw}${band} · ${step}`);
      out.title = String(value);
    }

    resize() {
      if (this.plot) this.plot.setSize({ width: Math.max(120, this.element.clientWidth), height: this.options.height || 204 });
    }

    destroy() {
      this.plot?.destroy();
      this.plot = null;
      this.dot = null;
    }
  }
  Encore.Chart = Chart;
})();
