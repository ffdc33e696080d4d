// The image with its objects: drawn for the part that is in view, moved and zoomed, and asked what is under a point.

const OPACITY = 0.38;
const MOST = 40; // screen pixels for one of the image

export class Viewer {
  // onHover(index or null, x, y in the canvas), onSelect(index or null)
  constructor(canvas, onHover, onSelect) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.tester = document.createElement("canvas").getContext("2d");
    this.onHover = onHover;
    this.onSelect = onSelect;
    this.objects = [];
    this.groups = [];
    this.visible = [];
    this.hovered = this.selected = null;
    this.showMasks = true;
    this.pointers = new Map();
    this.clear();
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.release(event));
    // A finger that is lifted leaves too; what it has tapped stays described.
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.hover(null));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  clear() {
    this.picture = null;
    this.size = [1, 1];
    this.setObjects([]);
    this.redraw();
  }

  // picture: an ImageBitmap of the image, possibly reduced; width and height: of the image itself.
  setPicture(picture, width, height) {
    this.picture = picture;
    this.size = [width, height];
    this.fit();
  }

  // Each with path (Path2D), box [x0, y0, x1, y1], area and colour; show() says which are drawn.
  setObjects(objects) {
    this.objects = objects;
    this.hovered = this.selected = null;
    this.show([]);
  }

  show(indices) {
    const groups = new Map();
    for (const index of indices) {
      const { colour, path } = this.objects[index];
      if (!groups.has(colour)) groups.set(colour, new Path2D());
      groups.get(colour).addPath(path);
    }
    this.visible = indices;
    this.groups = [...groups];
    const shown = new Set(indices);
    if (!shown.has(this.hovered)) this.hovered = null;
    if (!shown.has(this.selected)) this.selected = null;
    this.redraw();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth) return;
    const wasFit = this.isFit();
    [this.canvas.width, this.canvas.height] = [clientWidth * ratio, clientHeight * ratio];
    this.ratio = ratio;
    if (wasFit) this.fit();
    else this.redraw();
  }

  fitScale() {
    return Math.min(this.canvas.clientWidth / this.size[0], this.canvas.clientHeight / this.size[1]);
  }

  isFit() {
    return this.scale === undefined || Math.abs(this.scale / this.fittedScale - 1) < 1e-6;
  }

  fit() {
    this.scale = this.fittedScale = this.fitScale();
    this.x = (this.canvas.clientWidth - this.size[0] * this.scale) / 2;
    this.y = (this.canvas.clientHeight - this.size[1] * this.scale) / 2;
    this.redraw();
  }

  // Change the scale so that the point (x, y) of the canvas stays where it is.
  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const least = Math.min(this.fitScale(), 1);
    const scale = Math.min(Math.max(this.scale * factor, least), Math.max(MOST, least));
    if (scale === least && least < 1) return this.fit();
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.redraw();
  }

  pan(dx, dy) {
    const keep = (place, extent, room) => Math.min(Math.max(place, Math.min(room - extent, 0)), Math.max(room - extent, 0));
    this.x = keep(this.x + dx, this.size[0] * this.scale, this.canvas.clientWidth);
    this.y = keep(this.y + dy, this.size[1] * this.scale, this.canvas.clientHeight);
    this.redraw();
  }

  // Select an object and bring it into view.
  select(index, bring = true) {
    this.selected = index;
    if (index !== null && bring) {
      const [x0, y0, x1, y1] = this.objects[index].box;
      const { clientWidth, clientHeight } = this.canvas;
      const wanted = Math.min(clientWidth / (x1 - x0), clientHeight / (y1 - y0)) / 4;
      if (Math.max(x1 - x0, y1 - y0) * this.scale < 12) this.zoom(Math.min(wanted, 4) / this.scale);
      const [x, y] = [((x0 + x1) / 2) * this.scale, ((y0 + y1) / 2) * this.scale];
      if (x + this.x < 0 || y + this.y < 0 || x + this.x > clientWidth || y + this.y > clientHeight) {
        this.pan(clientWidth / 2 - x - this.x, clientHeight / 2 - y - this.y);
      }
    }
    this.redraw();
  }

  highlight(index) {
    if (index === this.hovered) return;
    this.hovered = index;
    this.redraw();
  }

  // The smallest object that is drawn at a point of the canvas, or null.
  find(x, y) {
    const [column, row] = [(x - this.x) / this.scale, (y - this.y) / this.scale];
    let found = null;
    for (const index of this.visible) {
      const { box, path, area } = this.objects[index];
      if (column < box[0] || column > box[2] || row < box[1] || row > box[3]) continue;
      if (found !== null && area >= this.objects[found].area) continue;
      if (this.tester.isPointInPath(path, column, row, "nonzero")) found = index;
    }
    return found;
  }

  hover(index, x = 0, y = 0) {
    this.highlight(index);
    this.onHover(index, x, y);
  }

  place(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  press(event) {
    this.pointers.set(event.pointerId, this.place(event));
    this.moved = 0;
    this.canvas.setPointerCapture(event.pointerId);
  }

  move(event) {
    const [x, y] = this.place(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) return this.hover(this.find(x, y), x, y);
    this.moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
    if (this.moved > 4) this.hover(null);
    if (this.pointers.size === 1) {
      if (this.moved > 4) this.pan(x - before[0], y - before[1]);
    } else if (this.pointers.size === 2) {
      const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
      const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
      this.zoom(distance([x, y]) / Math.max(distance(before), 1), (x + other[0]) / 2, (y + other[1]) / 2);
    }
    this.pointers.set(event.pointerId, [x, y]);
  }

  release(event) {
    const point = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (!point || event.type !== "pointerup" || this.moved > 4 || this.pointers.size) return;
    const index = this.find(...point);
    this.selected = index;
    this.hover(index, ...point);
    this.onSelect(index);
  }

  wheel(event) {
    if (!this.picture) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 400), ...this.place(event));
  }

  key(event) {
    const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
    if (steps[event.key]) this.pan(...steps[event.key]);
    else if (event.key === "+") this.zoom(1.4);
    else if (event.key === "-") this.zoom(1 / 1.4);
    else return;
    event.preventDefault();
  }

  redraw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.draw();
    });
  }

  draw() {
    const { context, canvas, ratio } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.picture || !ratio) return;
    const scale = this.scale * ratio;
    context.setTransform(scale, 0, 0, scale, this.x * ratio, this.y * ratio);
    context.imageSmoothingEnabled = scale * (this.size[0] / this.picture.width) < 3;
    context.drawImage(this.picture, 0, 0, ...this.size);
    canvas.style.touchAction = this.isFit() ? "pan-y" : "none";
    canvas.dataset.view = [this.scale, this.x, this.y].join(" ");
    if (this.showMasks) {
      context.lineWidth = (1.2 * ratio) / scale;
      for (const [colour, path] of this.groups) {
        context.fillStyle = context.strokeStyle = colour;
        context.globalAlpha = OPACITY;
        context.fill(path, "nonzero");
        context.globalAlpha = 1;
        context.stroke(path);
      }
    }
    for (const index of new Set([this.hovered, this.selected])) {
      if (index === null) continue;
      const { path } = this.objects[index];
      context.globalAlpha = 0.3;
      context.fillStyle = "#fff";
      context.fill(path, "nonzero");
      context.globalAlpha = 1;
      for (const [width, colour] of [[4.5, "#000"], [2.5, "#fff"]]) {
        [context.lineWidth, context.strokeStyle] = [(width * ratio) / scale, colour];
        context.stroke(path);
      }
    }
  }
}
