"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const drawn = figures.map((figure) => Plotly.newPlot(
  figure.id, figure.data, figure.layout, {responsive: true, displaylogo: false, displayModeBar: false}
));
const resize = () => figures.forEach((figure) => Plotly.Plots.resize(figure.id));
// Paper is narrower than the screen, and its layout comes after the last resize of the window.
window.matchMedia("print").addEventListener("change", resize);
window.addEventListener("afterprint", resize);
const text = document.getElementById("filter-text");
const fate = document.getElementById("filter-fate");
const filter = () => {
  const wanted = text.value.toLowerCase();
  let shown = 0;
  for (const sample of document.querySelectorAll(".sample")) {
    const fits = sample.textContent.toLowerCase().includes(wanted)
      && (fate.value === "all" || sample.dataset.fate === fate.value);
    sample.hidden = !fits;
    shown += fits;
  }
  document.getElementById("filter-count").textContent = `${shown} shown`;
};
if (text) {
  text.addEventListener("input", filter);
  fate.addEventListener("change", filter);
  filter();
}
Promise.all(drawn).then(() => { document.documentElement.dataset.drawn = String(drawn.length); });
