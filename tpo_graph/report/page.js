"use strict";
(() => {
  const { answer, candidates } = JSON.parse(document.getElementById("run").textContent);
  const plot = document.getElementById("plot");
  const points = new Map();
  for (const point of document.querySelectorAll("[data-point]")) points.set(Number(point.dataset.point), point);
  const edges = [...document.querySelectorAll("[data-child]")];
  let current = -1;

  const reward = (index) => candidates[index].reward;
  const best = (indices) => indices.reduce((one, other) => (one < 0 || reward(other) > reward(one) ? other : one), -1);

  function ancestors(index) {
    const line = new Set([index]);
    for (let up = candidates[index].parent; up !== null && !line.has(up); up = candidates[up].parent) line.add(up);
    return line;
  }

  // of a plot that is wider than the page, the part with the point
  function showPoint(point) {
    if (!point) return;
    const box = plot.parentElement.getBoundingClientRect();
    const { left, right } = point.getBoundingClientRect();
    if (left < box.left || right > box.right) plot.parentElement.scrollLeft += (left + right - box.left - box.right) / 2;
  }

  function select(index) {
    if (!candidates[index]) return;
    document.getElementById(`c${current}`)?.classList.remove("shown");
    document.getElementById(`c${index}`).classList.add("shown");
    points.get(current)?.removeAttribute("aria-current");
    points.get(index)?.setAttribute("aria-current", "true");
    // one stop for Tab, and the arrow keys from there
    if (points.has(index)) for (const [other, point] of points) point.setAttribute("tabindex", other === index ? 0 : -1);
    showPoint(points.get(index));
    const line = ancestors(index);
    for (const edge of edges) {
      const child = Number(edge.dataset.child);
      edge.classList.toggle("kin", line.has(child) || candidates[child].parent === index);
    }
    current = index;
    const { id, step } = candidates[index];
    document.getElementById("status").textContent = `Shown: candidate ${id} of step ${step}`;
  }

  // where an arrow key leads; -1 for nowhere
  function neighbour(key, index) {
    const { step, parent } = candidates[index];
    const shown = [...points.keys()];
    if (key === "ArrowLeft") return points.has(parent) ? parent : -1;
    if (key === "Home") return points.has(answer) ? answer : -1;
    if (key === "ArrowRight") {
      const children = shown.filter((other) => candidates[other].parent === index);
      const later = shown.map((other) => candidates[other].step).filter((other) => other > step);
      return best(children.length ? children : shown.filter((other) => candidates[other].step === Math.min(...later)));
    }
    if (key !== "ArrowUp" && key !== "ArrowDown") return -1;
    const mine = shown.filter((other) => candidates[other].step === step);
    mine.sort((one, other) => reward(one) - reward(other) || one - other);
    return mine[mine.indexOf(index) + (key === "ArrowUp" ? 1 : -1)] ?? -1;
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#c"]');
    const match = link && /^#c(\d+)$/.exec(link.getAttribute("href"));
    if (!match) return;
    select(Number(match[1]));
    // a point and a link inside the reader: what they show is in view already
    const article = document.getElementById(`c${match[1]}`);
    if (link.dataset.point !== undefined || link.closest(".reader")) event.preventDefault();
    if (link.dataset.point === undefined) article.focus({ preventScroll: link.closest(".reader") !== null });
  });

  plot?.addEventListener("keydown", (event) => {
    const point = event.target.closest("[data-point]");
    if (!point || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = neighbour(event.key, Number(point.dataset.point));
    if (to < 0) return;
    event.preventDefault();
    select(to);
    points.get(to).focus();
  });

  const atHash = () => /^#c(\d+)$/.exec(location.hash)?.[1];
  addEventListener("hashchange", () => atHash() && select(Number(atHash())));
  select(Number(atHash() ?? answer ?? 0));
  document.documentElement.classList.add("scripted");
  document.documentElement.dataset.ready = "yes";
})();
