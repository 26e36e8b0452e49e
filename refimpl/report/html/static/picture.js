// What Cytoscape draws: boxes, edges and styles, made of a signature's data. Decides nothing about views.
window.refimplPicture = (() => {
  "use strict";

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colours = (number) => (number < 0 ? [css("--tf"), css("--tf-line")] : [css(`--c${number % 8}`), css(`--c${number % 8}l`)]);

  function node(id, x, y, size, label, islandNumber, kind) {
    return { group: "nodes", data: { id, label, w: size[0], h: size[1], wrap: size[0] - 14, c: islandNumber }, position: { x, y }, classes: kind };
  }

  // Where an edge bends, as Cytoscape wants it: along the line between its ends, and beside it.
  function bent(edge, source, target, points) {
    const dx = target.x - source.x, dy = target.y - source.y, square = dx * dx + dy * dy;
    if (!points || !points.length || !square) return edge;
    const weights = [], distances = [];
    for (let i = 0; i < points.length; i += 2) {
      const px = points[i] - source.x, py = points[i + 1] - source.y;
      weights.push(((px * dx + py * dy) / square).toFixed(4));
      distances.push(((px * dy - py * dx) / Math.sqrt(square)).toFixed(1));
    }
    edge.data.weights = weights.join(" ");
    edge.data.distances = distances.map((value) => -value).join(" ");
    edge.classes = `${edge.classes || ""} bent`;
    return edge;
  }

  function overview(graph, words) {
    const { short } = words;
    const { groups, flows } = graph.overview;
    const nodes = groups.map((group, number) => {
      const [x, y, w, h] = group.box;
      const why = group.reasons.length ? `\n${short(group.reasons[0], 64)}` : "";
      const label = `${short(group.title, 28)}\n${short(group.text, 34)}${why}`;
      return node(`g${number}`, x, y, [w, h], label, group.island, group.kind);
    });
    const edges = flows.map(([source, target, tensors, points], number) => {
      const label = tensors.length === 1 ? tensors[0] : `${tensors.length} tensors`;
      const edge = { group: "edges", data: { id: `f${number}`, source: `g${source}`, target: `g${target}`, label } };
      return bent(edge, nodes[source].position, nodes[target].position, points);
    });
    return [...nodes, ...edges];
  }

  function ops(graph, words, inside) {
    const { type, island, isEnd, short, tail, inScope } = words;
    const { x, y, size, edges, bends } = graph.all;
    const nodes = [], near = new Set();
    const add = (op, kind) => nodes.push(node(`o${op}`, x[op], y[op], size,
      isEnd(op) ? `${type(op).split(" ")[0]} ${short(graph.names[op], 20)}` : `${short(type(op), 24)}\n${tail(inScope(graph.names[op]), 26)}`,
      graph.island[op], `${isEnd(op) ? "end" : island(op) ? "island" : "tensorflow"} ${kind}`));
    const kept = edges.flatMap(([source, target], number) => {
      if (!inside(source) && !inside(target)) return [];
      [source, target].forEach((op) => { if (!inside(op)) near.add(op); });
      const edge = { group: "edges", data: { id: `e${number}`, source: `o${source}`, target: `o${target}`, label: "" } };
      const ends = [source, target].map((op) => ({ x: x[op], y: y[op] }));
      return [bends.length ? bent(edge, ends[0], ends[1], bends[number]) : edge];
    });
    graph.names.forEach((_, op) => { if (inside(op)) add(op, ""); });
    near.forEach((op) => add(op, "near"));
    return [...nodes, ...kept];
  }

  function styles(large) {
    const palette = new Map();
    const pair = (item) => {
      const number = item.data("c");
      if (!palette.has(number)) palette.set(number, colours(number));
      return palette.get(number);
    };
    const base = [
      { selector: "node", style: {
        shape: "round-rectangle", width: "data(w)", height: "data(h)", label: "data(label)", "text-wrap": "wrap", "text-max-width": "data(wrap)",
        "text-valign": "center", "font-size": 15, "line-height": 1.25, color: css("--ink"), "border-width": 2, "font-family": "system-ui, sans-serif",
        "background-color": (item) => pair(item)[0], "border-color": (item) => pair(item)[1],
        "min-zoomed-font-size": 6 } },
      { selector: "node.tensorflow", style: { "border-style": "dashed" } },
      { selector: "node.input, node.output, node.end", style: { "corner-radius": 22, "background-color": css("--sheet"), "border-color": css("--ink"), "border-width": 1 } },
      { selector: "edge", style: {
        width: large ? 1 : 1.5, "line-color": css("--tf-line"), "target-arrow-color": css("--tf-line"), label: "data(label)", "font-size": 13, color: css("--dim"),
        "text-background-color": css("--page"), "text-background-opacity": 0.85, "text-background-padding": 2, "min-zoomed-font-size": 7,
        ...(large ? { "curve-style": "haystack" } : { "curve-style": "straight", "target-arrow-shape": "triangle", "arrow-scale": 0.8 }) } },
      { selector: "node.near", style: { opacity: 0.5 } },
      { selector: ".missed", style: { opacity: 0.18 } },
      { selector: "node.hit", style: { "border-width": 5 } },
      { selector: "node.picked", style: { "border-width": 6, "border-color": css("--accent"), "border-style": "solid" } },
    ];
    if (!large) base.push({ selector: "edge.bent", style: { "curve-style": "round-segments", "segment-weights": "data(weights)", "segment-distances": "data(distances)", "edge-distances": "node-position", "segment-radii": 12 } });
    return base;
  }

  return { overview, ops, styles };
})();
