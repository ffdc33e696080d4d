// Beside the image: the sliders, the histogram, the table and the downloads, of one image and of all.

const ROWS = 100; // of the table at once
const BINS = 24;
const NAMES = { labels: "Label image", csv: "CSV", geojson: "GeoJSON", imagej: "ImageJ ROIs", coco: "COCO", overlay: "Overlay" };
const SVG = "http://www.w3.org/2000/svg";

const element = (id) => document.getElementById(id);
const number = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3))));

export class Panel {
  // onFilter(indices), onHover(index or null), onSelect(index)
  constructor(config, onFilter, onHover, onSelect) {
    Object.assign(this, { config, onFilter, onHover, onSelect });
    this.minScore = this.leastScore = Math.floor(config.score_threshold * 100) / 100;
    this.minArea = 0;
    this.sorting = { key: "id", down: false };
    this.rows = ROWS;
    this.image = null;
    this.ids = "";
    element("score").min = this.leastScore;
    element("score").value = this.leastScore;
    element("score").addEventListener("input", () => {
      this.minScore = Number(element("score").value);
      this.filter();
    });
    element("area").addEventListener("input", () => {
      this.minArea = this.areaAt(Number(element("area").value));
      this.filter();
    });
    element("measure").addEventListener("change", () => this.drawHistogram());
    element("more").addEventListener("click", () => {
      this.rows += 10 * ROWS;
      this.fillTable();
    });
    for (const head of document.querySelectorAll("th button")) {
      head.addEventListener("click", () => {
        const { key } = head.dataset;
        this.sorting = { key, down: this.sorting.key === key ? !this.sorting.down : key === "score" || key === "area" };
        this.fillTable();
      });
    }
    const rows = element("rows");
    const index = (event) => event.target.closest("tr")?.dataset.index;
    rows.addEventListener("mouseover", (event) => index(event) && this.onHover(Number(index(event))));
    rows.addEventListener("mouseleave", () => this.onHover(null));
    rows.addEventListener("click", (event) => {
      if (!index(event)) return;
      this.mark(Number(index(event)), false);
      this.onSelect(Number(index(event)));
    });
  }

  // image: id, objects (class, score, area, colour), classes, pixelSize; null for none.
  setImage(image) {
    this.image = image;
    this.rows = ROWS;
    this.selected = null;
    element("panel").hidden = !image;
    if (!image) return;
    this.largest = image.objects.reduce((largest, object) => Math.max(largest, object.area), 1);
    this.smallest = image.objects.reduce((smallest, object) => Math.min(smallest, Math.max(object.area, 1)), this.largest);
    const range = Math.log(this.largest / this.smallest) || 1;
    element("area").value = this.minArea ? (100 * Math.log(this.minArea / this.smallest)) / range : 0;
    element("note").textContent = image.note;
    element("note").hidden = !image.note;
    this.filter();
  }

  // The area that a place of the slider, 0 to 100, means: from the smallest to the largest, equal steps equal ratios.
  areaAt(place) {
    return place === 0 ? 0 : Math.round(this.smallest * (this.largest / this.smallest) ** (place / 100));
  }

  describeArea(area) {
    const size = this.image.pixelSize;
    return `${number(area)} px` + (size ? ` (${number(area * size * size)} µm²)` : "");
  }

  describe(index) {
    const object = this.image.objects[index];
    return `${this.image.classes[object.class].name} · score ${object.score.toFixed(2)} · ${this.describeArea(object.area)}`;
  }

  isKept(object) {
    return (this.minScore <= this.leastScore || object.score >= this.minScore) && object.area >= this.minArea;
  }

  filter() {
    if (!this.image) return;
    const { objects } = this.image;
    this.kept = objects.map((_, index) => index).filter((index) => this.isKept(objects[index]));
    element("score-value").textContent = this.minScore.toFixed(2);
    element("area-value").textContent = this.describeArea(this.minArea);
    element("count").textContent =
      this.kept.length === objects.length
        ? `${objects.length.toLocaleString("en")} object${objects.length === 1 ? "" : "s"}`
        : `${this.kept.length.toLocaleString("en")} of ${objects.length.toLocaleString("en")} objects`;
    if (!objects.length) {
      element("note").textContent =
        "Nothing was found. The objects may have another size, contrast or staining than those of the model's training.";
      element("note").hidden = false;
    }
    this.setLinks();
    this.drawHistogram();
    this.fillTable();
    this.onFilter(this.kept);
  }

  setLinks() {
    const query = new URLSearchParams();
    if (this.minScore > this.leastScore) query.set("min_score", this.minScore);
    if (this.minArea) query.set("min_area", this.minArea);
    this.fillLinks("links", (kind) => `page/images/${this.image.id}/download/${kind}?${query}`);
    query.set("ids", this.ids);
    this.fillLinks("all-links", (kind) => `page/download/${kind}.zip?${query}`);
  }

  fillLinks(id, address) {
    const links = this.config.downloads.map((kind) => {
      const link = document.createElement("a");
      link.href = address(kind);
      link.download = "";
      link.textContent = NAMES[kind] ?? kind;
      return link;
    });
    element(id).replaceChildren(...links);
  }

  // images: all of the page, each with id and state; told whenever one of them changes.
  setImages(images) {
    const count = (state) => images.filter((image) => image.state === state).length;
    const [done, failed] = [count("done"), count("failed")];
    const parts = [[done, ""], [failed, " failed"], [images.length - done - failed, " not finished"]];
    element("all").hidden = images.length < 2 || !done;
    element("all-count").textContent = parts.filter(([many]) => many).map(([many, what]) => many + what).join(", ");
    const ended = images.filter(({ id, state }) => id && (state === "done" || state === "failed"));
    const ids = ended.map(({ id }) => id).join(",");
    if (ids === this.ids) return; // a link that is replaced while it is clicked does nothing
    this.ids = ids;
    if (this.image) this.setLinks();
  }

  drawHistogram() {
    const measure = element("measure").value;
    const { objects } = this.image;
    const values = objects.map((object) => (measure === "area" ? Math.log(Math.max(object.area, 1)) : object.score));
    const low = measure === "area" ? values.reduce((a, b) => Math.min(a, b), Infinity) : this.leastScore;
    const high = measure === "area" ? values.reduce((a, b) => Math.max(a, b), low + 0.1) : 1;
    const label = (value) => (measure === "area" ? number(Math.exp(value)) : value.toFixed(2));
    const all = new Array(BINS).fill(0);
    const kept = new Array(BINS).fill(0);
    const isKept = new Set(this.kept);
    values.forEach((value, index) => {
      const bin = Math.min(Math.max(Math.floor(((value - low) / (high - low)) * BINS), 0), BINS - 1);
      all[bin] += 1;
      kept[bin] += isKept.has(index);
    });
    const [peak, step, base] = [Math.max(...all, 1), 420 / BINS, 118];
    const nodes = [];
    const add = (name, attributes, text = "") => {
      const node = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
      node.textContent = text;
      nodes.push(node);
      return node;
    };
    for (let bin = 0; bin < BINS && objects.length; bin++) {
      for (const [kind, count] of [["rest", all[bin]], ["kept", kept[bin]]]) {
        if (!count) continue;
        const height = (104 * count) / peak;
        const bar = add("rect", { class: kind, x: bin * step + 1, y: base - height, width: step - 2, height, rx: 2 });
        const title = document.createElementNS(SVG, "title");
        const [from, to] = [low + (bin * (high - low)) / BINS, low + ((bin + 1) * (high - low)) / BINS];
        title.textContent = `${label(from)} to ${label(to)}: ${kept[bin]} of ${all[bin]}`;
        bar.append(title);
      }
    }
    add("line", { x1: 0, x2: 420, y1: base, y2: base });
    if (objects.length) {
      add("text", { x: 1, y: 138, "text-anchor": "start" }, label(low));
      add("text", { x: 210, y: 138, "text-anchor": "middle" }, label((low + high) / 2));
      add("text", { x: 419, y: 138, "text-anchor": "end" }, label(high) + (measure === "area" ? " px" : ""));
    }
    element("histogram").replaceChildren(...nodes);
  }

  fillTable() {
    if (!this.image) return;
    const { objects, classes } = this.image;
    const { key, down } = this.sorting;
    const value = (index) =>
      key === "id" ? index : key === "class" ? classes[objects[index].class].name : objects[index][key];
    const order = [...this.kept].sort((a, b) => {
      const [first, second] = [value(a), value(b)];
      return (first < second ? -1 : first > second ? 1 : a - b) * (down ? -1 : 1);
    });
    this.order = order;
    for (const head of document.querySelectorAll("th")) {
      const is = head.firstElementChild.dataset.key === key;
      if (is) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    const rows = order.slice(0, this.rows).map((index) => {
      const object = objects[index];
      const row = document.createElement("tr");
      row.dataset.index = index;
      row.style.setProperty("--dot", object.colour);
      row.classList.toggle("selected", index === this.selected);
      for (const text of [index + 1, classes[object.class].name, object.score.toFixed(2), number(object.area)]) {
        row.insertCell().textContent = text;
      }
      return row;
    });
    element("rows").replaceChildren(...rows);
    const left = order.length - rows.length;
    element("more").hidden = left <= 0;
    element("more").textContent = `Show ${Math.min(left, 10 * ROWS)} more of ${left}`;
  }

  // Mark the row of an object, and bring it into view unless the page would move under a phone's image.
  mark(index, bring = true) {
    this.selected = index;
    const place = index === null ? -1 : this.order.indexOf(index);
    if (place >= this.rows) {
      this.rows = place + ROWS;
      this.fillTable();
    }
    for (const row of element("rows").children) {
      const is = Number(row.dataset.index) === index;
      row.classList.toggle("selected", is);
      if (is && bring && matchMedia("(min-width: 901px)").matches) row.scrollIntoView({ block: "nearest" });
    }
  }
}
