// The CSRF token on every request, and one way to say that one has failed.
(() => {
  const Encore = (window.Encore = window.Encore || {});
  const token = () => document.querySelector('meta[name="csrf"]')?.content || "";

  Encore.toast = (text, kind = "error") => {
    const box = document.getElementById("toasts");
    if (!box) return;
    for (const old of box.children) if (old.dataset.text === text) old.remove();
    const note = document.createElement("div");
    note.className = `notice ${kind}`;
    note.setAttribute("role", kind === "error" ? "alert" : "status");
    note.dataset.text = text;
    const words = document.createElement("span");
    words.className = "grow wrap";
    words.textContent = text;
    const close = document.createElement("button");
    close.className = "btn btn-quiet";
    close.textContent = "Dismiss";
    close.addEventListener("click", () => note.remove());
    note.append(words, close);
    box.append(note);
    setTimeout(() => note.remove(), kind === "error" ? 12000 : 4000);
  };

  const reason = (status, text) => {
    try {
      const body = JSON.parse(text);
      if (body.message) return body.message;
    } catch { /* not JSON */ }
    if (status === 403) return "Not allowed: your role in this project does not let you do that.";
    if (status === 404) return "Not found: it was deleted, or you may not see it.";
    return `The server answered ${status}. Its log says why; try again.`;
  };

  // Resolves to the Response; throws an Error whose message can be shown as it is.
  Encore.fetch = async (url, options = {}) => {
    const headers = { "X-CSRFToken": token(), ...(options.headers || {}) };
    let answer;
    try {
      answer = await fetch(url, { credentials: "same-origin", ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server cannot be reached. Old data stays here; it is tried again.");
    }
    if (answer.redirected && new URL(answer.url).pathname === "/login") throw new Error("You are logged out. Log in again to go on.");
    if (!answer.ok) throw Object.assign(new Error(reason(answer.status, await answer.text())), { status: answer.status });
    return answer;
  };

  document.addEventListener("htmx:configRequest", (event) => { event.detail.headers["X-CSRFToken"] = token(); });
  document.addEventListener("htmx:responseError", (event) => {
    const { status, responseText } = event.detail.xhr;
    if (event.detail.elt.hasAttribute("data-poll")) return Encore.stale?.(true);
    Encore.toast(reason(status, responseText));
  });
  document.addEventListener("htmx:sendError", (event) => {
    if (event.detail.elt.hasAttribute("data-poll")) return Encore.stale?.(true);
    Encore.toast("The server cannot be reached. Is `encore up` still running?");
  });
})();
