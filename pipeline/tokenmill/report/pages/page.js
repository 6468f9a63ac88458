"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const drawn = figures.map((figure) => Plotly.newPlot(
  figure.id, figure.data, figure.layout, {responsive: true, displaylogo: false, displayModeBar: false}
));
const resize = () => figures.forEach((figure) => Plotly.Plots.resize(figure.id));
// Paper is narrower than the screen, and its layout comes after the window's last resize event.
window.matchMedia("print").addEventListener("change", resize);
window.addEventListener("afterprint", resize);
const search = document.getElementById("filter-text");
const outcome = document.getElementById("filter-outcome");
const filter = () => {
  const text = search.value.toLowerCase();
  let shown = 0;
  for (const sample of document.querySelectorAll(".sample")) {
    const matches = sample.textContent.toLowerCase().includes(text)
      && (outcome.value === "all" || sample.dataset.outcome === outcome.value);
    sample.hidden = !matches;
    shown += matches;
  }
  document.getElementById("filter-count").textContent = `${shown} shown`;
};
if (search) {
  search.addEventListener("input", filter);
  outcome.addEventListener("change", filter);
  filter();
}
Promise.all(drawn).then(() => { document.documentElement.dataset.drawn = String(drawn.length); });
