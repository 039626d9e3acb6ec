// Light, dark or as the system has it; read before the first paint, so that nothing flashes.
(() => {
  const KEY = "encore.theme";
  const root = document.documentElement;
  const read = () => { try { return localStorage.getItem(KEY) || "auto"; } catch { return "auto"; } };
  root.dataset.theme = read();
  const next = { auto: "light", light: "dark", dark: "auto" };
  const label = () => {
    for (const button of document.querySelectorAll("[data-theme-button]")) {
      const text = `Theme: ${root.dataset.theme}`;
      button.title = text;
      button.setAttribute("aria-label", text);
      const word = button.querySelector("span");
      if (word) word.textContent = text;
    }
  };
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-theme-button]")) return;
    root.dataset.theme = next[root.dataset.theme] || "auto";
    try { localStorage.setItem(KEY, root.dataset.theme); } catch { /* private window: not remembered */ }
    label();
    document.dispatchEvent(new CustomEvent("encore:theme"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new CustomEvent("encore:theme")));
  document.addEventListener("DOMContentLoaded", label);
})();
