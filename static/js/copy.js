// data-copy="text", or data-copy-from="#id": put it on the clipboard and say so. A number copied alone is copied exactly.
(() => {
  async function put(text) {
    if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-copy],[data-copy-from]");
    if (!button) return;
    const from = button.dataset.copyFrom;
    const text = from ? document.querySelector(from)?.textContent.trim() : button.dataset.copy;
    try { await put(text || ""); } catch { window.Encore.toast("The browser did not allow copying; select the text instead."); return; }
    button.classList.add("done");
    const use = button.querySelector("use");
    const was = use?.getAttribute("href");
    use?.setAttribute("href", "#i-check");
    const title = button.title;
    button.title = "Copied";
    setTimeout(() => { button.classList.remove("done"); if (was) use.setAttribute("href", was); button.title = title; }, 1500);
  });
  document.addEventListener("copy", (event) => {
    const selection = document.getSelection();
    if (!selection || selection.isCollapsed) return;
    const number = selection.anchorNode?.parentElement?.closest("data.num");
    if (!number || !number.contains(selection.focusNode) || selection.toString().trim() !== number.textContent.trim()) return;
    event.clipboardData.setData("text/plain", number.value);
    event.preventDefault();
  });
})();
