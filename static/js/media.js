// A card a key: a slider over the steps at which it was logged, and what every run shows there. Cards load when they come into sight.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const LIVE_MS = 4000;
  const state = new URLSearchParams(window.location.search);

  const api = (run, what, query) => `/api/v1/runs/${run}/media${what}?${new URLSearchParams(query)}`;
  const json = async (url, signal) => (await Encore.fetch(url, { signal, headers: { Accept: "application/json" } })).json();

  class Card {
    constructor(element, board) {
      this.element = element;
      this.board = board;
      this.key = element.dataset.mediaKey;
      this.body = element.querySelector(".media-body");
      this.slider = element.querySelector("input[type=range]");
      this.output = element.querySelector("output");
      this.steps = null;
      this.shown = undefined;
      this.slider.addEventListener("input", () => { this.go(Number(this.slider.value)); board.moved(this); });
      element.querySelector("[data-back]").addEventListener("click", () => this.move(-1));
      element.querySelector("[data-on]").addEventListener("click", () => this.move(1));
    }

    get step() { return this.steps?.[this.at]; }

    move(by) {
      const to = Math.max(0, Math.min(this.steps.length - 1, this.at + by));
      if (to !== this.at) { this.go(to); this.board.moved(this); }
    }

    async open() {
      if (this.steps) return;
      this.steps = [];
      this.element.classList.add("loading");
      try { await this.look(); } catch (error) { this.steps = null; this.say(error.message); } finally { this.element.classList.remove("loading"); }
    }

    // The steps of every run; the card stays where it is, or goes with the newest if it stood there.
    async look() {
      const answers = await Promise.all(this.board.runs.map((run) => json(api(run.id, "/steps", { key: this.key }))));
      const found = [...new Set(answers.flatMap((answer) => answer.steps))].sort((a, b) => (a ?? -Infinity) - (b ?? -Infinity));
      if (found.length === this.steps.length && found.at(-1) === this.steps.at(-1)) return;
      const first = !this.steps.length;
      const newest = first || this.at === this.steps.length - 1;
      const kept = this.step;
      this.steps = found;
      this.slider.max = Math.max(0, found.length - 1);
      this.element.querySelector(".media-step").hidden = found.length === 0;
      if (!found.length) return this.say("Nothing here yet.");
      if (first && this.board.step !== null) this.seek(this.board.step);
      else if (first) this.go(this.newest(answers));
      else this.go(newest ? found.length - 1 : Math.max(0, found.indexOf(kept)));
    }

    // Where a comparison begins: at the last step that all runs have; with one run, its last.
    newest(answers) {
      const sets = answers.filter((answer) => answer.steps.length).map((answer) => new Set(answer.steps));
      for (let at = this.steps.length - 1; at >= 0; at -= 1) if (sets.every((set) => set.has(this.steps[at]))) return at;
      return this.steps.length - 1;
    }

    // The last step that is not beyond the one asked for.
    seek(step) {
      if (!this.steps?.length) return;
      let at = 0;
      this.steps.forEach((each, i) => { if (each !== null && each <= step) at = i; });
      if (at !== this.at || this.shown === undefined) this.go(at);
    }

    go(at) {
      this.at = at;
      this.slider.value = at;
      const step = this.steps[at];
      const text = step === null ? "no step" : `step ${step.toLocaleString("en")}`;
      this.output.textContent = text;
      this.output.title = `${at + 1} of ${this.steps.length}`;
      this.slider.setAttribute("aria-valuetext", `${text}, ${at + 1} of ${this.steps.length}`);
      this.slider.disabled = this.steps.length < 2;
      clearTimeout(this.soon);
      this.soon = setTimeout(() => this.show(), 40); // a slider that is dragged asks for where it stays
    }

    async show() {
      const step = this.step;
      this.abort?.abort();
      this.abort = new AbortController();
      const { signal } = this.abort;
      this.element.classList.add("loading");
      try {
        const query = step === null ? { key: this.key } : { key: this.key, step };
        const answers = await Promise.all(this.board.runs.map((run) => json(api(run.id, "/at", query), signal)));
        if (signal.aborted) return;
        this.shown = step;
        this.draw(answers.map((answer) => answer.results), step);
        Encore.stale?.(false);
      } catch (error) {
        if (error.name === "AbortError") return;
        if (this.shown === undefined) this.say(error.message); else Encore.stale?.(true);
      } finally { if (this.abort?.signal === signal) this.element.classList.remove("loading"); }
    }

    draw(results, step) {
      const { runs } = this.board;
      const height = this.body.offsetHeight;
      const groups = results.map((items, i) => this.group(items, runs[i], step));
      this.body.style.minHeight = `${Math.min(height, 480)}px`; // nothing below jumps while the next picture loads
      if (runs.length === 1) { this.body.replaceChildren(groups[0]); return; }
      const many = document.createElement("div");
      many.className = "media-many";
      groups.forEach((group, i) => {
        const of = document.createElement("div");
        of.className = "media-of";
        of.dataset.of = runs[i].id;
        of.hidden = this.board.closed.has(runs[i].id);
        const who = document.createElement("div");
        who.className = "media-who";
        const swatch = document.createElement("span");
        swatch.className = `swatch ${runs[i].swatch}`;
        const name = document.createElement("span");
        name.className = "cut";
        name.textContent = runs[i].name;
        who.append(swatch, name);
        of.append(who, group);
        many.append(of);
      });
      this.body.replaceChildren(many);
    }

    group(items, run, step) {
      const row = document.createElement("div");
      row.className = "media-row";
      if (!items.length) {
        const none = document.createElement("p");
        none.className = "media-note";
        none.textContent = "Nothing at this step.";
        row.append(none);
      }
      const ranks = new Set(items.map((item) => item.rank)).size;
      for (const item of items) row.append(Encore.mediaItem(item, { run, ranks, step, key: this.key, steps: this.steps, seek: (to) => { this.seek(to); this.board.moved(this); } }));
      return row;
    }

    say(text) {
      const note = document.createElement("p");
      note.className = "media-note";
      note.textContent = text;
      this.body.replaceChildren(note);
    }
  }

  class Board {
    constructor(root) {
      this.root = root;
      this.runs = JSON.parse(root.dataset.runs);
      this.together = root.querySelector("[data-together]");
      this.closed = new Set();
      document.addEventListener("change", (event) => {
        if (!event.target.matches?.("[data-eye]")) return;
        const { value, checked } = event.target;
        if (checked) this.closed.delete(value); else this.closed.add(value);
        for (const of of root.querySelectorAll(`[data-of="${CSS.escape(value)}"]`)) of.hidden = !checked;
      });
      const asked = state.get("step");
      this.step = asked !== null && /^-?\d{1,18}$/.test(asked) ? Number(asked) : null;
      if (this.together) this.together.checked = this.step !== null || this.runs.length > 1;
      this.cards = [...root.querySelectorAll("[data-media-key]")].map((element) => new Card(element, this));
      this.byElement = new Map(this.cards.map((card) => [card.element, card]));
      this.seen = new IntersectionObserver((entries) => {
        for (const entry of entries) { const card = this.byElement.get(entry.target); card.visible = entry.isIntersecting; if (card.visible) card.open(); }
      }, { rootMargin: "200px" });
      this.cards.forEach((card) => this.seen.observe(card.element));
      if (root.dataset.live === "1") setInterval(() => this.look(), LIVE_MS);
    }

    // A key that was first logged after the page was made.
    add(one) {
      if (this.cards.some((card) => card.key === one.key)) return;
      const element = this.cards[0].element.cloneNode(true);
      const kinds = one.kinds.join(", ");
      Object.assign(element.dataset, { mediaKey: one.key, kinds, item: `${one.key} ${kinds}` });
      element.setAttribute("aria-label", one.key);
      const name = element.querySelector("h2");
      name.textContent = name.title = one.key;
      element.querySelector("header .faint").textContent = kinds;
      element.querySelector(".media-step").hidden = true;
      element.querySelector("input[type=range]").setAttribute("aria-label", `Step of ${one.key}`);
      element.querySelector(".media-body").replaceChildren();
      this.root.querySelector("#media-cards").append(element);
      const card = new Card(element, this);
      this.cards.push(card);
      this.byElement.set(element, card);
      this.seen.observe(element);
    }

    moved(card) {
      if (!this.together?.checked || card.step === null) return;
      this.step = card.step;
      state.set("step", card.step);
      window.history.replaceState(null, "", `?${state}`);
      for (const other of this.cards) if (other !== card) other.seek(card.step);
    }

    async look() {
      if (document.hidden || this.busy) return;
      this.busy = true;
      try {
        for (const card of this.cards) if (card.visible && card.steps) await card.look();
        for (const run of this.runs) for (const one of (await json(api(run.id, "/keys", {}))).results) this.add(one);
      } catch { Encore.stale?.(true); } finally { this.busy = false; }
    }
  }

  const start = () => { for (const root of document.querySelectorAll("[data-media]:not([data-bound])")) { root.dataset.bound = "1"; new Board(root); } };
  document.addEventListener("DOMContentLoaded", start);
  document.addEventListener("htmx:afterSettle", start);
  Encore.mediaUrl = (run, item, cell) => `/api/v1/runs/${run.id}/media/${item.id}/content${cell ? `?cell=${encodeURIComponent(cell)}` : ""}`;
  Encore.mediaApi = api;
  Encore.mediaJson = json;
})();
