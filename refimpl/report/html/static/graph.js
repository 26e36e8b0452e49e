// Search, details and the picture of the graph. All names are written as text, never as markup.
(() => {
  "use strict";
  document.documentElement.classList.add("script");
  const data = JSON.parse(document.getElementById("graph-data").textContent);
  const $ = (id) => document.getElementById(id);
  const SHOWN = 100; // results of a search that are listed
  const LARGE = 3000; // boxes above which the picture is simplified
  const OVERVIEW = "overview", ALL = "all";

  let graph = data[0]; // the signature that is shown
  let view = OVERVIEW; // or ALL, or the number of a group
  let picture = null; // Cytoscape's object
  let hits = null; // indices of the ops that the search found
  let selected = null; // {op} or {group}

  // --- words about ops ---

  const text = (index) => (index < 0 ? "" : graph.texts[index]);
  const type = (op) => text(graph.types[op]);
  const reason = (op) => text(graph.reasons[op]);
  const island = (op) => (graph.island[op] < 0 ? "" : graph.islands[graph.island[op]]);
  const isEnd = (op) => op >= graph.count;
  const leaf = (name) => name.slice(name.lastIndexOf("/") + 1) || name;
  const inScope = (name) => (name.startsWith(commonScope()) ? name.slice(commonScope().length) : name);
  const short = (label, most) => (label.length > most ? `${label.slice(0, most - 1)}…` : label);
  const tail = (label, most) => (label.length > most ? `…${label.slice(1 - most)}` : label);
  const where = (op) => {
    if (isEnd(op)) return type(op);
    return island(op) || (reason(op) ? "TensorFlow" : "TensorFlow (computes nothing)");
  };
  const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

  // What all names begin with, up to a slash: in the picture it would only hide the rest.
  function commonScope() {
    if (graph.scope === undefined) {
      const names = graph.names.slice(0, graph.count).filter((name) => name.includes("/"));
      let scope = names[0] || "";
      names.forEach((name) => { while (!name.startsWith(scope)) scope = scope.slice(0, -1); });
      graph.scope = scope.slice(0, scope.lastIndexOf("/") + 1);
    }
    return graph.scope;
  }

  function haystacks() {
    graph.haystacks ??= graph.names.map((name, op) =>
      `${name} ${type(op)} ${island(op)} ${reason(op)}`.toLowerCase());
    return graph.haystacks;
  }

  function readers() {
    if (!graph.readers) {
      graph.readers = graph.names.map(() => []);
      graph.inputs.forEach((sources, op) => new Set(sources).forEach((source) => graph.readers[source].push(op)));
      const feeds = graph.all ? graph.all.edges : [];
      feeds.forEach(([source, op]) => { if (isEnd(source)) graph.readers[source].push(op); });
    }
    return graph.readers;
  }

  function feedsOf(op) {
    return graph.all ? graph.all.edges.filter(([source, target]) => target === op && isEnd(source)).map(([s]) => s) : [];
  }

  // --- search ---

  function search() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const list = $("results");
    list.replaceChildren();
    if (!words.length) {
      hits = null;
      $("search-status").textContent = `${plural(graph.count, "op")} in ${plural(graph.islands.length, "island")} and TensorFlow`;
      mark();
      return;
    }
    hits = [];
    haystacks().forEach((hay, op) => { if (words.every((word) => hay.includes(word))) hits.push(op); });
    const more = hits.length > SHOWN ? `; the first ${SHOWN} are listed` : "";
    $("search-status").textContent = `${plural(hits.length, "op")} found${more}`;
    hits.slice(0, SHOWN).forEach((op) => {
      const button = element("button", "", { type: "button" });
      button.append(element("span", `${type(op)}: `), element("code", graph.names[op]));
      button.append(element("small", reason(op) ? `TensorFlow: ${reason(op)}` : where(op)));
      button.addEventListener("click", () => goTo(op));
      const item = element("li");
      item.append(button);
      list.append(item);
    });
    mark();
  }

  // --- the panel of details ---

  function element(name, content = "", attributes = {}) {
    const made = document.createElement(name);
    if (content) made.textContent = content;
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    return made;
  }

  function pairs(rows) {
    const list = element("dl");
    rows.filter(([, value]) => value).forEach(([key, value]) => {
      const cell = element("dd");
      cell.append(value instanceof Node ? value : document.createTextNode(value));
      list.append(element("dt", key), cell);
    });
    return list;
  }

  function opList(title, ops) {
    if (!ops.length) return [];
    const list = element("ul");
    ops.slice(0, SHOWN).forEach((op) => {
      const button = element("button", `${type(op)} ${leaf(graph.names[op])}`, { type: "button", class: "link", title: graph.names[op] });
      button.addEventListener("click", () => goTo(op));
      const item = element("li");
      item.append(button);
      list.append(item);
    });
    if (ops.length > SHOWN) list.append(element("li", `and ${ops.length - SHOWN} more`));
    return [element("h4", `${title} (${ops.length})`), list];
  }

  function islandLink(name) {
    const link = element("a", name, { href: `#island-${name}` });
    link.addEventListener("click", () => { const card = $(`island-${name}`); if (card) card.open = true; });
    return link;
  }

  function swatch(number) {
    return element("span", "", { class: `swatch ${number < 0 ? "tf" : `c${number % 8}`}`, "aria-hidden": "true" });
  }

  function showOpPanel(op) {
    selected = { op };
    const title = element("h3");
    title.append(swatch(graph.island[op]), document.createTextNode(` ${type(op)}`));
    const rows = [
      ["Name", element("code", graph.names[op])],
      ["Runs in", island(op) ? islandLink(island(op)) : where(op)],
      ["Why it stays in TensorFlow", reason(op)],
      ["Tensors (type and shape)", graph.outputs[op].map(text).join(", ")],
    ];
    $("panel").replaceChildren(
      title, pairs(rows),
      ...opList("Reads", [...new Set([...feedsOf(op), ...graph.inputs[op]])]),
      ...opList("Read by", [...new Set(readers()[op])]),
    );
    $("panel").scrollTop = 0;
  }

  function membersOf(number) {
    return graph.group.flatMap((group, op) => (group === number ? [op] : []));
  }

  function showGroupPanel(number) {
    selected = { group: number };
    const group = graph.overview.groups[number];
    const members = membersOf(number);
    if (group.kind === "input" || group.kind === "output") { showOpPanel(members[0]); return; }
    const title = element("h3");
    title.append(swatch(group.island), document.createTextNode(` ${group.title}`));
    const open = element("button", "Open it", { type: "button" });
    open.addEventListener("click", () => setView(number));
    const counts = new Map();
    members.forEach((op) => counts.set(type(op), (counts.get(type(op)) || 0) + 1));
    const kinds = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 12).map(([kind, count]) => `${kind} ${count}`).join(", ");
    const flows = (end, other) => graph.overview.flows.filter((flow) => flow[end] === number)
      .map((flow) => `${graph.overview.groups[flow[other]].title}: ${flow[2].slice(0, 4).join(", ")}${flow[2].length > 4 ? ` and ${flow[2].length - 4} more` : ""}`).join("\n");
    const reasons = element("span", group.reasons.slice(0, 8).join("; "));
    $("panel").replaceChildren(title, open, pairs([
      ["Ops", kinds],
      ["Why they stay in TensorFlow", group.reasons.length ? reasons : ""],
      ["Engines, shapes and checks", group.island >= 0 ? islandLink(graph.islands[group.island]) : ""],
      ["Comes in from", flows(1, 0)],
      ["Goes to", flows(0, 1)],
    ]), ...opList("Its ops", members));
    $("panel").querySelectorAll("dd").forEach((cell) => { cell.style.whiteSpace = "pre-line"; });
    $("panel").scrollTop = 0;
  }

  // What is shown while nothing is selected: which colour is which island.
  function showLegend() {
    selected = null;
    const list = element("ul", "", { class: "legend" });
    const counts = new Map();
    for (let op = 0; op < graph.count; op += 1) counts.set(graph.island[op], (counts.get(graph.island[op]) || 0) + 1);
    [...graph.islands.keys(), -1].filter((number) => counts.has(number)).slice(0, SHOWN).forEach((number) => {
      const item = element("li");
      const name = number < 0 ? "TensorFlow" : graph.islands[number];
      const button = element(number < 0 || !graph.overview ? "span" : "button", name, number < 0 ? {} : { type: "button", class: "link" });
      if (number >= 0) button.addEventListener("click", () => window.refimplGraph.showIsland(graph.key, name));
      item.append(swatch(number), " ", button, ` ${plural(counts.get(number), "op")}`);
      list.append(item);
    });
    $("panel").replaceChildren(element("h3", "Who runs what"), list);
  }

  // --- the picture ---

  function elementsOf(which) {
    const words = { type, island, isEnd, short, tail, inScope };
    if (which === OVERVIEW) return window.refimplPicture.overview(graph, words);
    return window.refimplPicture.ops(graph, words, which === ALL ? () => true : (op) => graph.group[op] === which);
  }

  function draw() {
    if (!$("canvas") || !graph.overview) return;
    const elements = elementsOf(view);
    const large = elements.length > LARGE;
    if (picture) picture.destroy();
    picture = window.cytoscape({
      container: $("canvas"), elements, style: window.refimplPicture.styles(large), layout: { name: "preset" }, minZoom: 0.005, maxZoom: 4,
      hideEdgesOnViewport: large, textureOnViewport: large, pixelRatio: large ? 1 : "auto", autoungrabify: true, boxSelectionEnabled: false,
      selectionType: "single",
    });
    picture.on("tap", "node", (event) => pick(event.target.id()));
    picture.on("dbltap", "node", (event) => { if (event.target.id()[0] === "g") enter(Number(event.target.id().slice(1))); });
    fitReadably();
    mark();
    crumbs();
    $("canvas").dataset.boxes = String(picture.nodes().length);
  }

  // All of it, but never so small that nothing can be read: then the beginning of it.
  function fitReadably() {
    picture.resize();
    picture.fit(undefined, 24);
    const least = 0.62;
    if (picture.zoom() >= least) {
      if (picture.zoom() > 1.1) { picture.zoom(1.1); picture.center(); }
      return;
    }
    const box = picture.elements().boundingBox();
    picture.zoom(least);
    const first = picture.nodes().min((item) => item.position("y")).ele;
    picture.pan({ x: picture.width() / 2 - least * first.position("x"), y: 24 - least * box.y1 });
  }

  function enter(number) {
    const { kind } = graph.overview.groups[number];
    if (kind === "island" || kind === "tensorflow") setView(number);
  }

  function setView(which) {
    view = which;
    if (typeof which === "number") showGroupPanel(which); else showLegend();
    if (which !== ALL || graph.count <= LARGE) { draw(); return; }
    $("crumbs").textContent = `Drawing ${plural(graph.count, "op")} ...`;
    requestAnimationFrame(() => setTimeout(draw)); // after the words are seen
  }

  function crumbs() {
    const name = view === OVERVIEW ? "Overview" : view === ALL ? `All ${plural(graph.count, "op")}` : graph.overview.groups[view].title;
    $("crumbs").textContent = typeof view === "number" ? `Overview > ${name}` : name;
    $("view-overview").setAttribute("aria-pressed", String(view === OVERVIEW));
    $("view-all").setAttribute("aria-pressed", String(view === ALL));
  }

  function pick(id) {
    const number = Number(id.slice(1));
    if (id[0] === "g") showGroupPanel(number); else showOpPanel(number);
    mark();
  }

  function mark() {
    if (!picture) return;
    const wanted = hits && new Set(hits.map((op) => (view === OVERVIEW ? `g${graph.group[op]}` : `o${op}`)));
    picture.batch(() => {
      picture.elements().removeClass("hit missed picked");
      const many = picture.elements().length > LARGE; // then the rest is not dimmed, which would take seconds
      if (wanted) picture.nodes().forEach((item) => { if (wanted.has(item.id())) item.addClass("hit"); else if (!many) item.addClass("missed"); });
      if (selected) {
        const id = selected.op === undefined ? `g${selected.group}` : view === OVERVIEW ? `g${graph.group[selected.op]}` : `o${selected.op}`;
        picture.getElementById(id).addClass("picked");
      }
    });
  }

  function goTo(op) {
    showOpPanel(op);
    if (picture) {
      const shown = () => picture.getElementById(view === OVERVIEW ? `g${graph.group[op]}` : `o${op}`);
      if (view === OVERVIEW ? !isEnd(op) : shown().empty() || shown().hasClass("near")) {
        view = isEnd(op) ? OVERVIEW : graph.group[op];
        draw();
      }
      if (picture.zoom() < 0.6) picture.zoom(0.9);
      picture.center(shown());
      mark();
    }
    if (window.innerWidth < 768) $("panel").scrollIntoView({ block: "nearest" });
  }

  // --- signatures, buttons, keys ---

  function setSignature(key) {
    graph = data.find((item) => item.key === key) || graph;
    $("signature").value = graph.key;
    view = OVERVIEW;
    showLegend();
    draw();
    search();
  }

  function onKey(event) {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) { event.preventDefault(); $("search").focus(); }
    if (event.key === "Escape" && document.activeElement === $("search")) { $("search").value = ""; search(); }
    if (document.activeElement !== $("canvas") || !picture) return;
    const step = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] }[event.key];
    if (step) { event.preventDefault(); picture.panBy({ x: step[0], y: step[1] }); }
    if (event.key === "+" || event.key === "=") zoom(1.3);
    if (event.key === "-") zoom(1 / 1.3);
  }

  function zoom(factor) {
    picture.zoom({ level: picture.zoom() * factor, renderedPosition: { x: picture.width() / 2, y: picture.height() / 2 } });
  }

  if (!graph) { $("explorer").hidden = true; return; }
  window.refimplGraph = {
    showOp(key, name) {
      if (graph.key !== key) setSignature(key);
      const op = graph.names.indexOf(name);
      if (op >= 0) goTo(op);
    },
    showIsland(key, name) {
      if (graph.key !== key) setSignature(key);
      const number = graph.overview ? graph.overview.groups.findIndex((group) => group.kind === "island" && group.title === name) : -1;
      if (number >= 0) setView(number);
    },
  };
  data.forEach((item) => $("signature").append(element("option", item.key, { value: item.key })));
  $("signature-label").hidden = data.length < 2;
  $("signature").addEventListener("change", () => setSignature($("signature").value));
  let timer = 0;
  $("search").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, graph.count > LARGE ? 150 : 30); });
  document.addEventListener("keydown", onKey);
  document.addEventListener("refimpl-theme", () => { if (picture) picture.style(window.refimplPicture.styles(picture.elements().length > LARGE)); });
  if ($("canvas")) {
    $("view-overview").addEventListener("click", () => setView(OVERVIEW));
    $("view-all").addEventListener("click", () => setView(ALL));
    $("zoom-in").addEventListener("click", () => zoom(1.4));
    $("zoom-out").addEventListener("click", () => zoom(1 / 1.4));
    $("zoom-fit").addEventListener("click", () => picture.fit(undefined, 16));
  }
  showLegend();
  draw();
  search();
})();
