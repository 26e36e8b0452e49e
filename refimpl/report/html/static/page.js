// The theme, what opens for printing, and the buttons that lead from the text into the graph.
(() => {
  "use strict";
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  const stored = () => {
    try { return localStorage.getItem("refimpl-theme"); } catch { return null; } // a file may have no storage
  };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const tell = () => document.dispatchEvent(new Event("refimpl-theme"));

  if (stored() === "dark" || stored() === "light") {
    root.dataset.theme = stored();
    tell();
  }
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("refimpl-theme", root.dataset.theme); } catch { /* then it holds for this view */ }
    tell();
  });
  dark.addEventListener("change", tell);

  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((item) => { item.open = true; });
  });
  window.addEventListener("afterprint", () => closed.forEach((item) => { item.open = false; }));

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-op], [data-island]");
    if (!button || !window.refimplGraph) return;
    const { op, island, signature } = button.dataset;
    if (op !== undefined) window.refimplGraph.showOp(signature, op);
    else window.refimplGraph.showIsland(signature, island);
    document.getElementById("graph").scrollIntoView();
  });
})();
