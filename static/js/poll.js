// data-poll="3": ask again each 3 s, while somebody looks. Rests in a hidden tab, backs off while the server is away.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const last = new WeakMap();
  let lostAt = null;

  Encore.stale = (lost) => {
    const note = document.getElementById("stale");
    if (!note) return;
    if (!lost) { lostAt = null; note.hidden = true; return; }
    lostAt = lostAt || Date.now();
    const seconds = Math.round((Date.now() - lostAt) / 1000);
    note.textContent = `No answer from the server; what you see is ${seconds < 90 ? `${seconds} s` : `${Math.round(seconds / 60)} min`} old`;
    note.hidden = false;
  };

  function tick() {
    if (document.hidden) return;
    const now = performance.now();
    for (const element of document.querySelectorAll("[data-poll]")) {
      const wait = Number(element.dataset.poll) * 1000 * (lostAt ? 2 : 1);
      if (!last.has(element)) last.set(element, now);
      if (now - last.get(element) < wait || element.classList.contains("htmx-request")) continue;
      last.set(element, now);
      htmx.trigger(element, "poll");
    }
  }
  setInterval(tick, 500);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) document.querySelectorAll("[data-poll]").forEach((e) => last.set(e, -1e9)); });
  document.addEventListener("htmx:afterOnLoad", (event) => { if (lostAt && event.detail.successful) Encore.stale(false); });

  // Ages and durations of what still runs move by themselves, without a request.
  const SECOND = 1000;
  const short = (s) => s < 10 ? `${s.toFixed(1)}s` : s < 60 ? `${Math.floor(s)}s` : s < 3600 ? `${Math.floor(s / 60)}m ${String(Math.floor(s % 60)).padStart(2, "0")}s`
    : s < 86400 ? `${Math.floor(s / 3600)}h ${String(Math.floor(s % 3600 / 60)).padStart(2, "0")}m` : `${Math.floor(s / 86400)}d ${String(Math.floor(s % 86400 / 3600)).padStart(2, "0")}h`;
  const ago = (s) => s < 10 ? "now" : s < 60 ? `${Math.floor(s)}s ago` : s < 3600 ? `${Math.floor(s / 60)}m ago` : s < 86400 ? `${Math.floor(s / 3600)}h ago` : null;
  Encore.duration = short;
  setInterval(() => {
    if (document.hidden) return;
    for (const time of document.querySelectorAll("time[data-age]")) {
      const text = ago((Date.now() - Date.parse(time.dateTime)) / SECOND);
      if (text && time.textContent !== text) time.textContent = text;
    }
    for (const span of document.querySelectorAll("[data-since]")) span.textContent = short(Math.max(0, (Date.now() - Date.parse(span.dataset.since)) / SECOND));
  }, SECOND);
})();
