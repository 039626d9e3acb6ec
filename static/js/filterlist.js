// data-filter-list="#list": show only the items whose text has every word typed. Empty groups go with their items.
(() => {
  document.addEventListener("input", (event) => {
    const box = event.target.closest?.("[data-filter-list]");
    if (!box) return;
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const list = document.querySelector(box.dataset.filterList);
    if (!list) return;
    let shown = 0;
    for (const item of list.querySelectorAll("[data-item]")) {
      const text = (item.dataset.item || item.textContent).toLowerCase();
      const hit = words.every((word) => text.includes(word));
      item.hidden = !hit;
      if (hit) shown += 1;
    }
    for (const group of list.querySelectorAll("[data-group]")) {
      group.hidden = !group.querySelector("[data-item]:not([hidden])");
      if (words.length && group.tagName === "DETAILS" && !group.hidden) group.open = true;
    }
    const none = document.querySelector(`${box.dataset.filterList}-none`);
    if (none) none.hidden = shown > 0;
  });
})();
