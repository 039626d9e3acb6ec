// data-open="#id" opens a dialog; what htmx puts into [data-dialog-slot] opens by itself; Escape, a click beside it and data-close close.
(() => {
  document.addEventListener("click", (event) => {
    const opener = event.target.closest?.("[data-open]");
    if (opener) { event.preventDefault(); document.querySelector(opener.dataset.open)?.showModal(); return; }
    if (event.target.closest?.("[data-close]")) { event.target.closest("dialog")?.close(); return; }
    if (event.target instanceof HTMLDialogElement && event.target.open) {
      const box = event.target.getBoundingClientRect();
      const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
      if (!inside) event.target.close();
    }
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (!event.detail.target.matches?.("[data-dialog-slot]")) return;
    const dialog = event.detail.target.querySelector("dialog");
    if (!dialog) return;
    dialog.showModal();
    dialog.querySelector("[autofocus]")?.focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of document.querySelectorAll("details.menu[open]")) { menu.open = false; menu.querySelector("summary").focus(); }
  });
  // data-confirm: ask in words before a form that destroys something is sent.
  document.addEventListener("submit", (event) => {
    const text = event.submitter?.dataset.confirm || event.target.dataset.confirm;
    if (text && !window.confirm(text.replace("{n}", document.querySelectorAll("[data-pick]:checked").length))) { event.preventDefault(); event.stopImmediatePropagation(); }
  }, true);
  // data-auto-submit: a form that goes by itself once the page is there (the one-time login link).
  document.addEventListener("DOMContentLoaded", () => document.querySelector("form[data-auto-submit]")?.requestSubmit());
  document.addEventListener("change", (event) => event.target.closest?.("form[data-submit-on-change]")?.requestSubmit());
})();
