// Console output: chunks as they were printed become lines (\r rewrites a line, a line may span chunks), ANSI colours become classes,
// and nothing of it ever becomes markup.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const MOST = 20000;
  const ESCAPE = /\u001b(?:\[([0-9;:?]*)([ -/]*[@-~])|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[@-Z\\-_])/g;

  function codes(list, look) {
    const parts = list === "" ? [0] : list.split(/[;:]/).map(Number);
    for (let i = 0; i < parts.length; i += 1) {
      const n = parts[i];
      if (n === 0) { look.fg = look.bg = null; look.bold = look.dim = look.italic = look.under = false; }
      else if (n === 1) look.bold = true; else if (n === 2) look.dim = true; else if (n === 3) look.italic = true; else if (n === 4) look.under = true;
      else if (n === 22) { look.bold = look.dim = false; } else if (n === 23) look.italic = false; else if (n === 24) look.under = false;
      else if (n >= 30 && n <= 37) look.fg = n - 30; else if (n === 39) look.fg = null; else if (n >= 90 && n <= 97) look.fg = n - 82;
      else if (n >= 40 && n <= 47) look.bg = n - 40; else if (n === 49) look.bg = null; else if (n >= 100 && n <= 107) look.bg = n - 92;
      else if (n === 38 || n === 48) {
        const which = n === 38 ? "fg" : "bg";
        if (parts[i + 1] === 5) { if (parts[i + 2] < 16) look[which] = parts[i + 2]; i += 2; } else if (parts[i + 1] === 2) i += 4;
      }
    }
  }

  Encore.ansi = (text) => {
    const out = document.createDocumentFragment();
    const look = { fg: null, bg: null, bold: false, dim: false, italic: false, under: false };
    const add = (part) => {
      if (!part) return;
      const clean = part.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, "");
      const names = [look.fg !== null && `fg${look.fg}`, look.bg !== null && `bg${look.bg}`, look.bold && "ab", look.dim && "ad", look.italic && "ai", look.under && "au"].filter(Boolean);
      if (!names.length) { out.append(clean); return; }
      const span = document.createElement("span");
      span.className = names.join(" ");
      span.textContent = clean;
      out.append(span);
    };
    let at = 0;
    for (const match of text.matchAll(ESCAPE)) {
      add(text.slice(at, match.index));
      at = match.index + match[0].length;
      if (match[2] === "m") codes(match[1], look);
    }
    add(text.slice(at));
    return out;
  };

  // "\r" writes from the line's start again: what a progress bar shows in the end is what stays.
  const settle = (text) => {
    if (!text.includes("\r")) return text;
    let line = "";
    for (const part of text.replace(/\r+$/, "").split("\r")) line = part.length >= line.length ? part : part + line.slice(part.length);
    return line;
  };

  class Logs {
    constructor(root) {
      this.root = root;
      this.list = root.querySelector(".log-lines");
      this.note = root.querySelector("[data-log-note]");
      this.open = new Map();
      this.last = null;
      this.first = null;
      this.count = 0;
      this.live = root.dataset.live === "1";
      this.followBox = root.querySelector("[data-follow]");
      this.form = root.querySelector("form");
      this.form?.addEventListener("submit", (event) => { event.preventDefault(); this.restart(); });
      this.form?.addEventListener("change", (event) => { if (event.target !== this.followBox) this.restart(); });
      root.querySelector("[data-log-copy]")?.addEventListener("click", (event) => {
        event.currentTarget.dataset.copy = [...this.list.children].map((line) => line.lastElementChild.textContent).join("\n");
      }, true);
      root.querySelector("[data-earlier]")?.addEventListener("click", () => this.load({ before: this.first }));
      this.list.addEventListener("scroll", () => {
        const end = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 24;
        if (this.followBox && !end && this.moved) this.followBox.checked = false;
        this.moved = true;
      });
      this.restart();
      setInterval(() => { if (this.live && !document.hidden && !this.busy && this.last !== null && !this.search) this.load({ after: this.last }); }, 2000);
    }

    get search() { return this.form?.elements.q?.value.trim() || ""; }

    async restart() {
      this.turn = (this.turn || 0) + 1; // an answer to the question before would be added to this one's
      this.open.clear();
      this.list.textContent = "";
      this.count = 0;
      this.last = 0;
      this.first = null;
      await this.load({});
    }

    async load(range) {
      this.busy = true;
      const { turn } = this;
      const url = new URL(this.root.dataset.logs, window.location);
      for (const name of ["rank", "stream", "q"]) { const value = this.form?.elements[name]?.value; if (value) url.searchParams.set(name, value); }
      for (const [name, value] of Object.entries(range)) if (value !== null) url.searchParams.set(name, value);
      try {
        const answer = await (await Encore.fetch(url)).json();
        if (turn !== this.turn) return;
        this.show(answer, range);
        Encore.stale(false);
      } catch (error) {
        if (this.count) Encore.stale(true); else this.say(error.message);
      } finally { if (turn === this.turn) this.busy = false; }
    }

    say(text) { this.note.textContent = text; this.note.hidden = !text; }

    show(answer, range) {
      if (answer.live !== undefined) this.live = answer.live;
      const before = range.before !== undefined && range.before !== null;
      const bottom = this.list.scrollHeight - this.list.scrollTop;
      if (before) {
        // Earlier lines go above as a whole; a line cut between the two parts stays cut there.
        const kept = this.open;
        this.open = new Map();
        const holder = document.createDocumentFragment();
        this.add(answer.results, holder);
        this.list.prepend(holder);
        this.open = kept;
        this.list.scrollTop = this.list.scrollHeight - bottom;
      } else {
        this.add(answer.results, this.list);
        while (this.list.children.length > MOST) this.list.firstElementChild.remove();
        this.moved = false;
        if (this.followBox?.checked || range.after === undefined) this.list.scrollTop = this.list.scrollHeight;
      }
      if (answer.results.length) {
        const ids = answer.results.map((chunk) => chunk.id);
        if (!before) this.last = Math.max(this.last || 0, ...ids);
        this.first = this.first === null ? Math.min(...ids) : Math.min(this.first, ...ids);
        this.count += answer.results.length;
      }
      const earlier = this.root.querySelector("[data-earlier]");
      if (earlier && range.after === undefined) earlier.hidden = !answer.earlier;
      const words = this.search ? "No line contains that." : this.live ? "Nothing printed yet; lines show here as they come." : this.root.dataset.none || "This run printed nothing.";
      this.say(this.count ? "" : words);
      if (answer.more && !before) this.load({ after: this.last });
    }

    add(chunks, into) {
      const search = this.search.toLowerCase();
      for (const chunk of chunks) {
        const name = `${chunk.rank}/${chunk.stream}/${chunk.writer || ""}`;
        let { text = "", line = null } = this.open.get(name) || {};
        text += chunk.text;
        const parts = text.split("\n");
        parts.forEach((part, i) => {
          const whole = i < parts.length - 1;
          if (!whole && part === "") { line = null; return; }
          const shown = settle(part.replace(/\r$/, whole ? "" : "\r"));
          if (search && !shown.toLowerCase().includes(search)) { if (line) line.remove(); line = null; return; }
          if (!line) line = this.row(chunk, into);
          line.lastElementChild.replaceChildren(Encore.ansi(shown));
          if (whole) line = null;
        });
        this.open.set(name, { text: parts.at(-1), line });
      }
    }

    row(chunk, into) {
      const line = document.createElement("div");
      line.className = `log-line ${chunk.stream === "stderr" ? "err" : ""}`;
      const time = document.createElement("span");
      time.className = "log-time";
      if (chunk.time_us) {
        const when = new Date(chunk.time_us / 1000);
        time.textContent = when.toTimeString().slice(0, 8);
        time.title = when.toISOString();
      }
      const who = document.createElement("span");
      who.className = "log-rank";
      who.textContent = chunk.rank ?? chunk.stream;
      who.title = chunk.rank === undefined || chunk.rank === null ? chunk.stream : `rank ${chunk.rank}, ${chunk.stream}`;
      const text = document.createElement("span");
      text.className = "log-text";
      line.append(time, who, text);
      into.append(line);
      return line;
    }
  }

  const start = () => { for (const root of document.querySelectorAll("[data-logs]:not([data-bound])")) { root.dataset.bound = "1"; new Logs(root); } };
  document.addEventListener("DOMContentLoaded", start);
  document.addEventListener("htmx:afterSettle", start);
})();
