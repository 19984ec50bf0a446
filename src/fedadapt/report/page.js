"use strict";
(() => {
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 560px)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Every colour that depends on the reader's scheme, as plotly's flat updates.
  const themeOf = (layout) => {
    const size = narrow.matches ? 12 : 14;
    const update = {
      "font.color": colour("--text"),
      "font.family": getComputedStyle(document.body).fontFamily,
      "font.size": size,
      "hoverlabel.bgcolor": colour("--raised"),
      "hoverlabel.bordercolor": colour("--rule"),
      "hoverlabel.font.color": colour("--text"),
    };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      update[`${axis}.gridcolor`] = colour("--grid");
      update[`${axis}.linecolor`] = colour("--rule");
      update[`${axis}.tickcolor`] = colour("--rule");
      update[`${axis}.tickfont.color`] = colour("--muted");
      update[`${axis}.title.font.color`] = colour("--muted");
      update[`${axis}.title.font.size`] = size;
    }
    return update;
  };
  const scale = () => [0, 1, 2].map((step) => [step / 2, colour(`--scale-${step}`)]);

  const paint = async (plot) => {
    const sequential = plot.data.flatMap((trace, index) => (trace.meta === "sequential" ? [index] : []));
    if (sequential.length) await Plotly.restyle(plot, { colorscale: [scale()] }, sequential);
    await Plotly.relayout(plot, themeOf(plot.layout));
  };

  const figureOf = (name) => JSON.parse(document.getElementById(`${name}-figure`).textContent);

  const draw = async (plot) => {
    const figure = figureOf(plot.id);
    await Plotly.newPlot(plot, figure.data, figure.layout, { responsive: true, displayModeBar: false });
    await paint(plot);
  };

  // What is saved goes on white paper, so it has the colours of no scheme.
  const save = (button) => {
    const { data, layout } = figureOf(button.dataset.figure);
    const { width, height } = document.getElementById(button.dataset.figure).getBoundingClientRect();
    Plotly.downloadImage({ data, layout }, { format: "svg", filename: button.dataset.figure, width, height });
  };
  for (const button of document.querySelectorAll(".save")) button.addEventListener("click", () => save(button));

  // A page about a run that goes on is read again, and looks as the reader left it. Folds are known by their
  // section: a round that is committed may add sections.
  const folds = [...document.querySelectorAll("details")];
  const nameOf = (fold) => {
    const section = fold.closest("section");
    const place = [...section.querySelectorAll("details")].indexOf(fold);
    return `${place} ${section.querySelector("h2").textContent}`;
  };
  const readAgain = () => {
    const open = folds.filter((fold) => fold.open).map(nameOf);
    history.replaceState({ open, top: window.scrollY }, "");
    location.reload();
  };
  // A page that nobody sees waits until somebody does.
  const whenSeen = () => {
    if (!document.hidden) readAgain();
    else document.addEventListener("visibilitychange", readAgain, { once: true });
  };
  if (history.state) {
    history.scrollRestoration = "manual";
    for (const fold of folds) fold.open = history.state.open.includes(nameOf(fold));
    window.scrollTo(0, history.state.top);
  }
  const plots = [...document.querySelectorAll(".plot")];
  const repaint = () => plots.forEach(paint);
  Promise.all(plots.map(draw)).then(() => {
    scheme.addEventListener("change", repaint);
    narrow.addEventListener("change", repaint);
    document.documentElement.dataset.drawn = plots.length;
    const refresh = Number(document.documentElement.dataset.refresh);
    if (refresh) setTimeout(whenSeen, 1000 * refresh);
  });
})();
