"use strict";
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);

  for (const title of document.querySelectorAll("svg.chart title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  const lanes = new Map();
  for (const part of document.querySelectorAll("[data-lane]")) {
    const parts = lanes.get(part.dataset.lane) || [];
    parts.push(part);
    lanes.set(part.dataset.lane, parts);
  }
  let lit = [];
  const light = (parts) => {
    for (const part of lit) part.classList.remove("hot");
    for (const part of parts) part.classList.add("hot");
    lit = parts;
  };

  const pointsOf = new WeakMap();
  const points = (line) => {
    if (!pointsOf.has(line)) {
      pointsOf.set(line, line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)));
    }
    return pointsOf.get(line);
  };
  const distance = (x, y, [ax, ay], [bx, by]) => {
    const length = (bx - ax) ** 2 + (by - ay) ** 2;
    const along = length ? Math.min(1, Math.max(0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length)) : 0;
    return Math.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay));
  };
  const nearest = (svg, x, y) => {
    let found = null, least = 14;
    for (const line of svg.querySelectorAll("polyline")) {
      const corners = points(line);
      for (let i = 1; i < corners.length; i++) {
        const away = distance(x, y, corners[i - 1], corners[i]);
        if (away <= least) [found, least] = [line, away];
      }
    }
    return found;
  };
  const value = (scale, place) => {
    const [lo, hi, log, from, to] = scale.split(",").map(Number);
    const share = (place - from) / (to - from);
    return log ? lo * (hi / lo) ** share : lo + share * (hi - lo);
  };
  const text = (number, unit) => {
    return unit === "%" ? (100 * number).toFixed(1) + " %" : String(Number(number.toPrecision(4)));
  };
  const describe = (svg, line, x, y) => {
    if (!svg.dataset.x) return line.dataset.tip;
    const away = (point) => Math.hypot(point[0] - x, point[1] - y);
    const point = points(line).reduce((one, other) => away(other) < away(one) ? other : one);
    const top = Number(svg.dataset.y.split(",")[4]);
    const more = svg.dataset.cut && point[1] <= top + 0.01 ? "at least " : "";
    const [step, height] = [value(svg.dataset.x, point[0]), value(svg.dataset.y, point[1])];
    return `${line.dataset.tip}\n${svg.dataset.xName} ${Math.round(step)}: ${more}${text(height, svg.dataset.unit)}`;
  };
  const show = (message, event) => {
    tip.textContent = message;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const isLow = event.clientY + 18 + box.height > innerHeight;
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 4)) + "px";
    tip.style.top = (isLow ? event.clientY - box.height - 12 : event.clientY + 18) + "px";
  };
  const over = (event) => {
    const svg = event.target.closest("svg.chart");
    const row = event.target.closest("tr[data-lane]");
    let part = event.target.closest("[data-tip]");
    let message = part && part.dataset.tip;
    if (svg && svg.querySelector("polyline")) {
      const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      part = nearest(svg, x, y);
      message = part && describe(svg, part, x, y);
    }
    const lane = (part || row)?.dataset.lane;
    light(lanes.get(lane) || []);
    if (message) show(message, event);
    else tip.hidden = true;
  };
  document.addEventListener("pointermove", over);
  document.addEventListener("pointerdown", over);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);

  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (one, other, isNumber) => isNumber ? one - other : one.localeCompare(other, "en", { numeric: true });
  const sort = (table, column, isNumber, sign) => {
    const rows = [...table.tBodies[0].rows].map((row) => {
      const shown = key(row, column);
      return { row, value: isNumber ? parseFloat(shown) : shown };
    });
    const missing = (value) => isNumber ? Number.isNaN(value) : value === "";
    rows.sort((a, b) => missing(a.value) - missing(b.value) || sign * compare(a.value, b.value, isNumber) || 0);
    table.tBodies[0].append(...rows.map(({ row }) => row));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.textContent) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const isNumber = head.classList.contains("number");
        const before = head.getAttribute("aria-sort");
        const down = before ? before === "ascending" : isNumber;
        for (const one of heads) one.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, column, isNumber, down ? -1 : 1);
      });
    });
  }
})();
