// A logged table: sort by a column, filter by words, a page at a time, so that a hundred thousand rows cost what fifty do.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const PAGE = 50;
  const plain = (cell) => (cell !== null && typeof cell === "object" ? (typeof cell.number === "string" ? cell.number : cell.media ? String(cell.media.meta?.caption || "") : JSON.stringify(cell)) : cell);
  const order = (cell) => {
    const value = plain(cell);
    if (typeof value === "number") return [0, value];
    if (cell !== null && typeof cell === "object" && typeof cell.number === "string") { const n = Number(cell.number); return Number.isNaN(n) ? [2, 0] : [0, n]; }
    return value === null || value === undefined ? [3, 0] : [1, String(value)];
  };
  const compare = (a, b) => a[0] - b[0] || (a[0] === 0 ? a[1] - b[1] : a[0] === 1 ? a[1].localeCompare(b[1], "en", { numeric: true }) : 0);

  class Table {
    constructor(item, at) {
      const make = Encore.mediaMake;
      this.item = item;
      this.at = at;
      this.root = make("div", "media-table");
      this.note = make("p", "media-note", "Loading the table …");
      this.root.append(this.note);
      this.sort = null;
      this.page = 0;
      this.load();
    }

    async load() {
      try {
        const found = await (await Encore.fetch(Encore.mediaUrl(this.at.run, this.item))).json();
        if (!Array.isArray(found.columns) || !Array.isArray(found.rows) || !found.rows.every(Array.isArray)) throw new Error("This table is broken: it has no columns and rows.");
        this.columns = found.columns.map(String);
        this.rows = found.rows;
        this.build();
      } catch (error) { this.note.textContent = error instanceof SyntaxError ? "This table is broken: its JSON cannot be read." : error.message; }
    }

    build() {
      const make = Encore.mediaMake;
      this.numeric = this.columns.map((_, i) => this.rows.slice(0, 200).some((row) => order(row[i])[0] === 0) && this.rows.slice(0, 200).every((row) => order(row[i])[0] !== 1));
      const tools = make("div", "tools");
      this.filter = make("input");
      this.filter.type = "search";
      this.filter.placeholder = "Filter rows";
      this.filter.setAttribute("aria-label", "Filter rows");
      this.filter.addEventListener("input", () => { clearTimeout(this.soon); this.soon = setTimeout(() => { this.page = 0; this.choose(); }, 80); });
      this.count = make("span");
      this.back = make("button", "btn", "Previous");
      this.on = make("button", "btn", "Next");
      for (const [button, by] of [[this.back, -1], [this.on, 1]]) { button.type = "button"; button.addEventListener("click", () => { this.page += by; this.paint(); }); }
      tools.append(this.filter, this.count, this.back, this.on);
      const box = make("div", "table-box");
      const table = make("table", "plain");
      const head = make("tr");
      this.heads = this.columns.map((name, i) => {
        const cell = make("th", this.numeric[i] ? "n" : "");
        const button = make("button", "", name);
        button.type = "button";
        button.addEventListener("click", () => { this.sort = this.sort?.[0] === i ? (this.sort[1] ? [i, false] : null) : [i, true]; this.page = 0; this.choose(); });
        cell.append(button);
        head.append(cell);
        return cell;
      });
      const thead = make("thead");
      thead.append(head);
      this.body = make("tbody");
      table.append(thead, this.body);
      box.append(table);
      this.root.replaceChildren(tools, box);
      this.choose();
    }

    choose() {
      const terms = this.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      this.chosen = terms.length ? this.rows.filter((row) => { const text = row.map(plain).join("\u0001").toLowerCase(); return terms.every((term) => text.includes(term)); }) : this.rows.slice();
      if (this.sort) {
        const [column, rising] = this.sort;
        this.chosen = this.chosen.map((row) => [order(row[column]), row]).sort((a, b) => (a[0][0] > 1 || b[0][0] > 1 ? a[0][0] - b[0][0] : (rising ? 1 : -1) * compare(a[0], b[0]))).map((pair) => pair[1]);
      }
      this.heads.forEach((cell, i) => cell.setAttribute("aria-sort", this.sort?.[0] === i ? (this.sort[1] ? "ascending" : "descending") : "none"));
      this.paint();
    }

    paint() {
      const pages = Math.max(1, Math.ceil(this.chosen.length / PAGE));
      this.page = Math.max(0, Math.min(pages - 1, this.page));
      const from = this.page * PAGE;
      const rows = this.chosen.slice(from, from + PAGE).map((row) => {
        const line = document.createElement("tr");
        this.columns.forEach((_, i) => line.append(this.cell(row[i], this.numeric[i])));
        return line;
      });
      this.body.replaceChildren(...rows);
      const total = this.rows.length.toLocaleString("en");
      this.count.textContent = `${this.chosen.length ? `${(from + 1).toLocaleString("en")}–${(from + rows.length).toLocaleString("en")} of ` : ""}${this.chosen.length === this.rows.length ? total : `${this.chosen.length.toLocaleString("en")} (${total})`} rows`;
      this.back.disabled = this.page === 0;
      this.on.disabled = this.page >= pages - 1;
      this.back.hidden = this.on.hidden = pages === 1;
    }

    cell(value, numeric) {
      const cell = document.createElement("td");
      if (numeric) cell.className = "n";
      if (value === null || value === undefined) { cell.className += " null"; cell.textContent = "–"; return cell; }
      if (typeof value === "object" && value.media && typeof value.media === "object") {
        const { kind, digest, meta } = value.media;
        const url = Encore.mediaUrl(this.at.run, this.item, digest || "");
        if (kind === "image" && digest) { cell.append(Encore.mediaPicture(url, meta || {}, String(meta?.caption || "image"))); return cell; }
        if (kind === "audio" && digest) { const player = document.createElement("audio"); player.controls = true; player.preload = "none"; player.src = url; cell.append(player); return cell; }
        cell.textContent = kind === "text" && typeof meta?.text === "string" ? meta.text : String(kind);
        return cell;
      }
      const text = String(plain(value));
      cell.textContent = text.length > 400 ? `${text.slice(0, 400)}…` : text;
      if (text.length > 40) cell.title = text.slice(0, 4000);
      return cell;
    }
  }

  Encore.mediaTable = (item, at) => new Table(item, at).root;
})();
