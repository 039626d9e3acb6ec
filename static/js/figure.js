// A logged figure, inside its sandboxed frame: Plotly draws what lies in the page.
(() => {
  document.addEventListener("DOMContentLoaded", () => {
    const note = document.getElementById("figure-note");
    const say = (text) => { note.textContent = text; note.hidden = false; };
    let found;
    try { found = JSON.parse(document.getElementById("figure-json").textContent); } catch { return say("This figure is broken: its JSON cannot be read."); }
    if (!Array.isArray(found.data)) return say("This figure has no data.");
    if (!window.Plotly) return say("Plotly could not be loaded; run `python manage.py vendor` on the server.");
    const layout = { ...(found.layout || {}), autosize: true };
    delete layout.width; delete layout.height;
    const draw = window.Plotly.newPlot("figure", found.data, layout, { responsive: true, displaylogo: false });
    draw.then(() => found.frames && window.Plotly.addFrames("figure", found.frames)).then(() => { document.body.dataset.drawn = "1"; note.hidden = true; }).catch((error) => say(`This figure cannot be drawn: ${error.message || error}`));
  });
})();
