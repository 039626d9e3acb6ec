// A small Markdown: headings, lists, code, quotes, emphasis, links. It builds elements from text; markup in the text stays text.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const make = (name, text) => { const element = document.createElement(name); if (text !== undefined) element.textContent = text; return element; };
  const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|__([^_\n]+)__|\*([^*\s][^*\n]*)\*|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/g;

  function inline(into, text) {
    let at = 0;
    for (const match of text.matchAll(INLINE)) {
      into.append(text.slice(at, match.index));
      at = match.index + match[0].length;
      if (match[1] !== undefined) into.append(make("code", match[1]));
      else if (match[2] ?? match[3]) into.append(make("strong", match[2] ?? match[3]));
      else if (match[4] !== undefined) into.append(make("em", match[4]));
      else {
        const link = make("a", match[5]);
        link.href = match[6];
        link.rel = "noopener noreferrer nofollow";
        link.target = "_blank";
        into.append(link);
      }
    }
    into.append(text.slice(at));
    return into;
  }

  Encore.markdown = (text) => {
    const root = document.createElement("div");
    root.className = "media-words";
    const lines = text.replace(/\r\n?/g, "\n").split("\n");
    let list = null;
    let para = [];
    const flush = () => { if (para.length) root.append(inline(make("p"), para.join(" "))); para = []; };
    for (let i = 0; i < lines.length; i += 1) {
      const line = lines[i];
      const fence = /^\s*(```|~~~)/.exec(line);
      if (fence) {
        flush(); list = null;
        const code = [];
        for (i += 1; i < lines.length && !lines[i].trimStart().startsWith(fence[1]); i += 1) code.push(lines[i]);
        root.append(make("pre", code.join("\n")));
        continue;
      }
      const heading = /^(#{1,6})\s+(.*)$/.exec(line);
      const bullet = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)$/.exec(line);
      const quote = /^>\s?(.*)$/.exec(line);
      if (heading) { flush(); list = null; root.append(inline(make(`h${Math.min(3, heading[1].length)}`), heading[2])); }
      else if (bullet) {
        flush();
        const name = bullet[1] !== undefined ? "OL" : "UL";
        if (list?.tagName !== name) { list = make(name); root.append(list); }
        list.append(inline(make("li"), bullet[2]));
      } else if (quote) { flush(); list = null; root.append(inline(make("blockquote"), quote[1])); }
      else if (!line.trim()) { flush(); list = null; }
      else if (list && /^\s+/.test(line)) inline(list.lastElementChild, ` ${line.trim()}`);
      else { list = null; para.push(line.trim()); }
    }
    flush();
    return root;
  };
})();
