// How each kind of media looks. Text is only ever text; what a user's page could run, runs in a frame without an origin.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const MOST_TEXT = 200000;

  function picture(url, meta, alt) {
    const link = make("a");
    link.href = url;
    link.target = "_blank";
    link.rel = "noopener";
    const image = make("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = alt;
    if (meta.width > 0 && meta.height > 0) { image.width = meta.width; image.height = meta.height; }
    if (meta.width <= 96 && meta.height <= 96) image.classList.add("small");
    image.src = url;
    image.addEventListener("error", () => link.replaceWith(make("p", "media-note", "Its bytes are not there yet, or are no image.")));
    link.append(image);
    return link;
  }

  function player(kind, url) {
    const element = make(kind);
    element.controls = true;
    element.preload = "metadata";
    if (kind === "video") { element.loop = true; element.muted = true; element.playsInline = true; }
    element.src = url;
    element.addEventListener("error", () => element.replaceWith(make("p", "media-note", "Its bytes are not there yet, or this browser cannot play them.")));
    return element;
  }

  function frame(url, title) {
    const element = make("iframe");
    element.setAttribute("sandbox", "allow-scripts");
    element.setAttribute("referrerpolicy", "no-referrer");
    element.loading = "lazy";
    element.title = title;
    element.src = url;
    return element;
  }

  function words(item, url) {
    const holder = make("div");
    const fill = (text) => holder.replaceChildren(item.mime === "text/markdown" ? Encore.markdown(text) : make("pre", "media-text", text));
    if (typeof item.meta.text === "string") { fill(item.meta.text); return holder; }
    fill(typeof item.meta.start === "string" ? `${item.meta.start}…` : "…");
    Encore.fetch(url).then((answer) => answer.text()).then((text) => fill(text.length > MOST_TEXT ? `${text.slice(0, MOST_TEXT)}\n… (${text.length.toLocaleString("en")} characters)` : text))
      .catch((error) => holder.append(make("p", "media-note", error.message)));
    return holder;
  }

  function download(url, item) {
    const link = make("a", "btn", `Download ${item.kind || "file"} (${item.mime || "unknown type"})`);
    link.href = url;
    return link;
  }

  const KINDS = {
    image: (item, at) => picture(Encore.mediaUrl(at.run, item), item.meta, item.meta.caption || `${at.key} at step ${item.step}`),
    audio: (item, at) => player("audio", Encore.mediaUrl(at.run, item)),
    video: (item, at) => (item.mime.startsWith("image/") ? picture(Encore.mediaUrl(at.run, item), item.meta, item.meta.caption || at.key) : player("video", Encore.mediaUrl(at.run, item))),
    text: (item, at) => words(item, Encore.mediaUrl(at.run, item)),
    table: (item, at) => Encore.mediaTable(item, at),
    histogram: (item, at) => Encore.mediaHistogram(item, at),
    html: (item, at) => frame(Encore.mediaUrl(at.run, item), item.meta.caption || at.key),
    plotly: (item, at) => frame(`/runs/${at.run.id}/media/${item.id}/figure`, item.meta.caption || at.key),
  };
  const BROAD = new Set(["text", "table", "histogram", "html", "plotly"]);

  function caption(item, at) {
    const { meta } = item;
    const parts = [];
    if (meta.caption) parts.push(String(meta.caption));
    if (at.ranks > 1) parts.push(`rank ${item.rank}`);
    if (meta.seconds) parts.push(`${meta.seconds} s, ${meta.rate} Hz`);
    const foot = make("figcaption", "", parts.join(" · "));
    const odd = [meta.clipped && `${meta.clipped.toLocaleString("en")} values were out of range and are clipped`, item.kind === "image" && meta.not_finite && `${meta.not_finite.toLocaleString("en")} values are NaN or infinite`].filter(Boolean);
    if (odd.length) { if (parts.length) foot.append(" · "); foot.append(make("span", "warn", odd.join("; "))); }
    return foot.textContent ? foot : null;
  }

  Encore.mediaPicture = picture;
  Encore.mediaMake = make;
  Encore.mediaItem = (item, at) => {
    const meta = item.meta && typeof item.meta === "object" ? item.meta : {};
    const figure = make("figure", `media-item${BROAD.has(item.kind) ? " broad" : ""}`);
    figure.dataset.kind = item.kind;
    const safe = { ...item, meta };
    try {
      figure.append((KINDS[item.kind] || ((each) => download(Encore.mediaUrl(at.run, each), each)))(safe, at));
    } catch (error) { figure.append(make("p", "media-note", `This ${item.kind} cannot be shown: ${error.message}`)); }
    const below = caption(safe, at);
    if (below) figure.append(below);
    return figure;
  };
})();
