// Draws every figure in the colours of the page, and again when the colour scheme or the width changes.
"use strict";
(function () {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // "@blue" in a figure stands for the page's colour of that name.
  const coloured = (value) => {
    if (typeof value === "string") return /^@[a-z]+$/.test(value) ? css(value.slice(1)) : value;
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v)]));
    }
    return value;
  };

  const axis = (given) => Object.assign(
    { gridcolor: css("grid"), zeroline: false, linecolor: css("line"), tickcolor: css("line"), automargin: true },
    given
  );

  function draw() {
    const narrow = window.innerWidth < 640;
    for (const [id, figure] of Object.entries(figures)) {
      const layout = Object.assign({}, coloured(figure.layout), {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: css("text"), size: narrow ? 11 : 13, family: "system-ui, sans-serif" },
        margin: { l: 56, r: 16, t: 12, b: 48 },
        hoverlabel: { bgcolor: css("panel"), bordercolor: css("line"), font: { color: css("text") }, align: "left" },
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      });
      layout.xaxis = axis(coloured(figure.layout.xaxis));
      layout.yaxis = axis(coloured(figure.layout.yaxis));
      Plotly.react(id, coloured(figure.data), layout, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  }

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
