// data-pick: choosing rows. The bar of what can be done with them floats, so that nothing shifts. Shift-click takes a range.
(() => {
  let from = null;
  const boxes = () => [...document.querySelectorAll("[data-pick]")];
  function show() {
    const all = boxes();
    const chosen = all.filter((box) => box.checked);
    const bar = document.getElementById("bulk");
    if (!bar) return;
    bar.hidden = !chosen.length;
    const count = bar.querySelector("[data-count]");
    if (count) count.textContent = `${chosen.length} selected`;
    const whole = document.querySelector("[data-pick-all]");
    if (whole) { whole.checked = chosen.length > 0 && chosen.length === all.length; whole.indeterminate = chosen.length > 0 && chosen.length < all.length; }
  }
  document.addEventListener("click", (event) => {
    const box = event.target;
    if (box.matches?.("[data-pick]")) {
      const all = boxes();
      if (event.shiftKey && from && all.includes(from)) {
        const [a, b] = [all.indexOf(from), all.indexOf(box)].sort((x, y) => x - y);
        for (const other of all.slice(a, b + 1)) other.checked = box.checked;
      }
      from = box;
      show();
    } else if (box.matches?.("[data-pick-all]")) {
      for (const other of boxes()) other.checked = box.checked;
      show();
    } else if (box.closest?.("[data-pick-none]")) {
      for (const other of boxes()) other.checked = false;
      show();
    } else if (box.closest?.("[data-compare]")) {
      const ids = boxes().filter((b) => b.checked).map((b) => b.value);
      if (ids.length) window.location.href = `/compare?runs=${ids.join(",")}`;
    }
  });
  document.addEventListener("htmx:afterSettle", show);
  window.addEventListener("pageshow", show);
})();
