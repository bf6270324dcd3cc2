// Draws each <canvas data-scene> of a report: atoms as shaded balls, bonds, the cell; drag, wheel and keys turn and zoom it.
"use strict";
for (const canvas of document.querySelectorAll("canvas[data-scene]")) {
  const scene = JSON.parse(canvas.dataset.scene);
  const pen = canvas.getContext("2d");
  const corners = [], edges = [];
  for (let n = 0; n < 8; n++) {
    const bits = [n & 1, (n >> 1) & 1, (n >> 2) & 1];
    corners.push([0, 1, 2].map(k => bits.reduce((sum, bit, i) => sum + (bit - 0.5) * scene.cell[i][k], 0)));
    for (let i = 0; i < 3; i++) if (!bits[i]) edges.push([n, n | (1 << i), i]);
  }
  const reach = Math.max(...corners.concat(scene.xyz).map(p => Math.hypot(...p))) + 1;
  let turn, zoom;

  function reset() {
    turn = [[1, 0, 0], [0, 0, 1], [0, -1, 0]];
    rotate(0.62, 0.28);
    zoom = 1;
  }

  function rotate(about_y, about_x) {
    const [c, s, d, t] = [Math.cos(about_y), Math.sin(about_y), Math.cos(about_x), Math.sin(about_x)];
    const step = [[c, 0, s], [s * t, d, -c * t], [-s * d, t, c * d]];
    turn = step.map(row => [0, 1, 2].map(k => row[0] * turn[0][k] + row[1] * turn[1][k] + row[2] * turn[2][k]));
  }

  function draw() {
    const width = canvas.clientWidth, height = canvas.clientHeight, dots = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * dots)) canvas.width = Math.round(width * dots);
    if (canvas.height !== Math.round(height * dots)) canvas.height = Math.round(height * dots);
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    pen.clearRect(0, 0, width, height);
    const scale = zoom * 0.58 * Math.min(width, height) / reach, far = 4 * reach;
    const ink = getComputedStyle(canvas).color;
    const place = p => {
      const [x, y, z] = turn.map(row => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]);
      const near = scale * far / (far - z);  // a slight perspective
      return { x: width / 2 + x * near, y: height / 2 - y * near, z, near };
    };
    const atoms = scene.xyz.map(place), points = corners.map(place);
    const items = atoms.map((p, i) => ({ z: p.z, paint: () => ball(p, scene.kinds[scene.kind[i]]) }));
    for (const [i, j] of scene.bonds) {  // from surface to surface, each half in the colour of its atom
      const p = scene.xyz[i], q = scene.xyz[j], kinds = [scene.kinds[scene.kind[i]], scene.kinds[scene.kind[j]]];
      const long = Math.hypot(...p.map((x, k) => q[k] - x)), at = t => place(p.map((x, k) => x + t * (q[k] - x)));
      const a = at(0.36 * kinds[0][2] / long), m = at(0.5), b = at(1 - 0.36 * kinds[1][2] / long);
      items.push({ z: (a.z + m.z) / 2, paint: () => stick(a, m, kinds[0][1]) });
      items.push({ z: (m.z + b.z) / 2, paint: () => stick(m, b, kinds[1][1]) });
    }
    const pieces = 12;  // edges go piecewise, so that each piece passes before or behind an atom
    for (const [n, m] of edges) {
      const at = t => place(corners[n].map((x, k) => x + t * (corners[m][k] - x)));
      for (let k = 0; k < pieces; k++) {
        const a = at(k / pieces), b = at((k + 1) / pieces);
        items.push({ z: (a.z + b.z) / 2 - 0.6, paint: () => edge(a, b, n === 0 || m === 0, ink) });
      }
    }
    items.sort((a, b) => a.z - b.z).forEach(item => item.paint());
    for (const [n, m, axis] of edges) if (n === 0) label("abc"[axis], points[0], points[m], ink);
  }

  function fade(z) {
    return 0.55 + 0.45 * Math.min(1, Math.max(0, (z / reach + 1) / 1.4));
  }

  function ball(p, kind) {
    const r = 0.42 * kind[2] * p.near;
    const glow = pen.createRadialGradient(p.x - 0.35 * r, p.y - 0.35 * r, 0.1 * r, p.x, p.y, r);
    glow.addColorStop(0, "#ffffff");
    glow.addColorStop(0.25, kind[1]);
    glow.addColorStop(1, shade(kind[1], 0.5));
    pen.globalAlpha = 1;
    pen.beginPath();
    pen.arc(p.x, p.y, r, 0, 7);
    pen.fillStyle = glow;
    pen.fill();
    pen.lineWidth = 0.7;
    pen.strokeStyle = "#0007";
    pen.stroke();
  }

  function shade(colour, factor) {
    const parts = [1, 3, 5].map(k => Math.round(parseInt(colour.slice(k, k + 2), 16) * factor));
    return `rgb(${parts.join(",")})`;
  }

  function line(a, b, colour, width) {
    pen.beginPath();
    pen.moveTo(a.x, a.y);
    pen.lineTo(b.x, b.y);
    pen.lineCap = "butt";
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.stroke();
  }

  function stick(a, b, colour) {
    const width = 0.1 * (a.near + b.near);
    pen.globalAlpha = 1;
    line(a, b, shade(colour, 0.45), width);
    line(a, b, shade(colour, 0.85), width * 0.62);
  }

  function edge(a, b, first, ink) {
    pen.globalAlpha = 0.75 * fade((a.z + b.z) / 2);
    line(a, b, ink, first ? 1.8 : 1);
    pen.globalAlpha = 1;
  }

  function label(text, from, to, ink) {
    const long = Math.hypot(to.x - from.x, to.y - from.y) || 1, off = (8 + 0.75 * to.near) / long;
    pen.fillStyle = ink;
    pen.font = "italic 16px Georgia, serif";
    pen.fillText(text, to.x + off * (to.x - from.x) - 4, to.y + off * (to.y - from.y) + 5);
  }

  function scaleBy(factor) {
    zoom = Math.min(20, Math.max(0.2, zoom * factor));
  }

  let last = null;
  canvas.addEventListener("pointerdown", event => { last = event; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", () => { last = null; });
  canvas.addEventListener("pointermove", event => {
    if (!last) return;
    rotate(0.01 * (event.clientX - last.clientX), 0.01 * (event.clientY - last.clientY));
    last = event;
    draw();
  });
  canvas.addEventListener("wheel", event => { event.preventDefault(); scaleBy(Math.exp(-0.0012 * event.deltaY)); draw(); }, { passive: false });
  canvas.addEventListener("dblclick", () => { reset(); draw(); });
  canvas.addEventListener("keydown", event => {
    const turns = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
    if (turns[event.key]) rotate(...turns[event.key]);
    else if (event.key === "+" || event.key === "=") scaleBy(1.1);
    else if (event.key === "-") scaleBy(1 / 1.1);
    else return;
    event.preventDefault();
    draw();
  });
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  reset();
  draw();
}
