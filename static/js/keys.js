// The keyboard: / filter, j k move, x select, Enter open, c compare, ? help, Ctrl/Cmd K jump.
(() => {
  const rows = () => [...document.querySelectorAll("[data-row]")];
  const current = () => document.querySelector("[data-row].current");
  const typing = (element) => element?.closest("input:not([type=checkbox]), textarea, select, [contenteditable]");

  function move(by) {
    const all = rows();
    if (!all.length) return;
    const at = all.indexOf(current());
    const next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? (by > 0 ? 0 : all.length - 1) : at + by))];
    current()?.classList.remove("current");
    next.classList.add("current");
    next.scrollIntoView({ block: "nearest" });
    next.querySelector("a")?.focus({ preventScroll: true });
  }

  function jump() {
    const dialog = document.getElementById("jump");
    if (!dialog) return;
    if (!dialog.open) dialog.showModal();
    const input = dialog.querySelector("input");
    input.select();
    htmx.trigger(input, "open");
  }

  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") { event.preventDefault(); jump(); return; }
    if (event.target.closest?.("#jump")) {
      const links = [...document.querySelectorAll("#jump-list a")];
      const at = links.findIndex((link) => link.classList.contains("current"));
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        const to = (at + (event.key === "ArrowDown" ? 1 : -1) + links.length) % (links.length || 1);
        links[at]?.classList.remove("current");
        links[to]?.classList.add("current");
        links[to]?.scrollIntoView({ block: "nearest" });
      } else if (event.key === "Enter") {
        event.preventDefault();
        (links[at] || links[0])?.click();
      }
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing(event.target)) { if (event.key === "Escape") event.target.blur(); return; }
    if (document.querySelector("dialog[open]")) return;
    switch (event.key) {
      case "/": { const box = document.querySelector("[data-filter]"); if (box) { event.preventDefault(); box.focus(); box.select(); } break; }
      case "j": move(1); break;
      case "k": move(-1); break;
      case "x": { const box = current()?.querySelector("[data-pick]"); if (box) box.click(); break; }
      case "Enter": if (event.target === document.body) current()?.querySelector("[data-main]")?.click(); break;
      case "c": document.querySelector("[data-compare]")?.click(); break;
      case "r": document.querySelector("[data-reproduce]")?.click(); break;
      case "?": document.getElementById("keys")?.showModal(); break;
      default: return;
    }
  });
  document.addEventListener("click", (event) => { if (event.target.closest?.("[data-jump]")) jump(); });
  document.addEventListener("DOMContentLoaded", () => {
    if (/Mac|iPhone|iPad/.test(navigator.platform)) for (const key of document.querySelectorAll("[data-mod]")) key.textContent = "⌘ K";
  });
})();
