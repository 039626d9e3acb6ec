// hx-swap="morph": change the old tree into the new one in place, so that focus, scroll, selection and open parts stay.
(() => {
  const key = (node) => (node.nodeType === 1 && (node.id || node.dataset.key)) || null;
  // What the user has set on the page since it was painted is theirs, not the server's.
  const OWN = new Set(["checked", "open", "data-state"]);

  function attributes(old, fresh) {
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !OWN.has(name) && !(name === "class" && old.dataset.keepClass !== undefined)) old.removeAttribute(name);
    }
    for (const { name, value } of [...fresh.attributes]) {
      if (OWN.has(name) || old.getAttribute(name) === value) continue;
      if (name === "class" && old.classList.contains("current")) old.className = `${value} current`;
      else old.setAttribute(name, value);
    }
  }

  function element(old, fresh) {
    if (old.isEqualNode(fresh) || old.hasAttribute("data-own")) return;
    if (old.dataset.since && old.dataset.since === fresh.dataset.since) return; // it counts by itself
    attributes(old, fresh);
    if (/^(INPUT|TEXTAREA|SELECT)$/.test(old.tagName)) return;
    children(old, fresh);
  }

  function children(old, fresh) {
    const known = new Map();
    for (const child of old.children) if (key(child)) known.set(key(child), child);
    // Under the pointer nothing may move: new rows wait until it has left.
    const held = old.matches("tbody") && old.matches(":hover");
    let at = old.firstChild;
    let waiting = 0;
    for (const child of [...fresh.childNodes]) {
      const name = key(child);
      let mine = name ? known.get(name) : null;
      if (!mine && name && held) { waiting += 1; continue; }
      if (!name && at && !key(at) && at.nodeType === child.nodeType && at.nodeName === child.nodeName) mine = at;
      if (!mine) { old.insertBefore(document.importNode(child, true), at); continue; }
      if (mine === at) at = at.nextSibling;
      else if (!held) old.insertBefore(mine, at);
      if (mine.nodeType === 1) element(mine, child);
      else if (mine.nodeValue !== child.nodeValue) mine.nodeValue = child.nodeValue;
    }
    if (held) return waiting;
    while (at) { const next = at.nextSibling; at.remove(); at = next; }
  }

  function morph(target, html) {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    const fresh = holder.content.firstElementChild;
    if (!fresh) return [];
    if (fresh.id && fresh.id === target.id) element(target, fresh);
    else children(target, holder.content);
    return [target];
  }
  (window.Encore = window.Encore || {}).morph = morph;

  document.addEventListener("DOMContentLoaded", () => {
    htmx.defineExtension("morph", {
      isInlineSwap: (style) => style === "morph",
      handleSwap: (style, target, fragment) => {
        if (style !== "morph") return false;
        const holder = document.createElement("div");
        holder.append(fragment.cloneNode(true));
        return morph(target, holder.innerHTML);
      },
    });
  });
})();
