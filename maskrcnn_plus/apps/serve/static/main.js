// The page: which images there are, how far they are, and which one is shown.

import { getBlob, getJson, remove, Refused, upload } from "./requests.js";
import { Panel } from "./panel.js";
import { Viewer } from "./viewer.js";

const POLL = 400; // milliseconds
const STORED = `maskrcnn_plus images ${location.pathname}`; // of this server among those of the host

const element = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Files may be given before the server has answered.
let begin;
const ready = new Promise((resolve) => { begin = resolve; });
function take(files) {
  const kept = [...files];
  ready.then(() => sendAll(kept));
}
element("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
});

const config = await getJson("page/config");
const images = []; // id, name, state, tiles, error, note, chip, view
let current = null;

const viewer = new Viewer(element("canvas"), showTip, (index) => panel.mark(index));
const panel = new Panel(
  config,
  (indices) => viewer.show(indices),
  (index) => viewer.highlight(index),
  (index) => viewer.select(index),
);
panel.setImage(null);
element("model").textContent = config.title;

function showTip(index, x, y) {
  const tip = element("tip");
  tip.hidden = index === null;
  if (index === null) return;
  tip.textContent = panel.describe(index);
  const { clientWidth, clientHeight } = element("canvas");
  const left = Math.max(4, Math.min(x + 14, clientWidth - tip.offsetWidth - 4));
  const top = y + 18 + tip.offsetHeight > clientHeight ? y - tip.offsetHeight - 10 : y + 18;
  tip.style.transform = `translate(${left}px, ${top}px)`;
}

// Colours as in overlays: with one class neighbours differ, with several the colour is the class's.
function prepare(image, outlines) {
  const several = outlines.classes.length > 1;
  const palette = outlines.palette;
  const objects = outlines.objects.map(([category, score, area, rings], index) => {
    const path = new Path2D();
    const box = [Infinity, Infinity, -Infinity, -Infinity];
    for (const ring of rings) {
      for (let k = 0; k < ring.length; k += 2) {
        const [x, y] = [ring[k], ring[k + 1]];
        if (k) path.lineTo(x, y);
        else path.moveTo(x, y);
        [box[0], box[1], box[2], box[3]] = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x), Math.max(box[3], y)];
      }
      path.closePath();
    }
    const { colours } = outlines.classes[category];
    const colour = several ? colours[index % colours.length] : palette[index % palette.length];
    return { class: category, score, area, path, box, colour };
  });
  return { id: image.id, objects, classes: outlines.classes, pixelSize: outlines.pixel_size, note: image.note,
    width: outlines.width, height: outlines.height };
}

async function load(image) {
  if (image.view) return;
  const [outlines, picture] = await Promise.all([
    getJson(`page/images/${image.id}/outlines`),
    getBlob(`page/images/${image.id}/picture`).then((blob) => createImageBitmap(blob)),
  ]);
  image.view = { ...prepare(image, outlines), picture };
}

async function show(image) {
  const changed = image !== current;
  current = image;
  element("work").hidden = !image;
  for (const each of images) each.chip.setAttribute("aria-current", String(each === image));
  if (changed) {
    viewer.clear();
    panel.setImage(null);
    element("tip").hidden = true;
  }
  if (!image) return;
  showProgress(image);
  if (image.state === "done" && (changed || !panel.image)) {
    try {
      await load(image);
    } catch (error) {
      if (!(error instanceof TypeError)) fail(image, error); // else the network is away for a moment
      else await pause(5 * POLL).then(() => image === current && show(image));
    }
    if (image !== current || !image.view) return;
    const { picture, width, height, objects } = image.view;
    viewer.resize();
    viewer.setPicture(picture, width, height);
    viewer.setObjects(objects);
    panel.setImage(image.view);
    showProgress(image);
  }
}

function describeState(image) {
  const [done, all] = image.tiles ?? [0, 1];
  switch (image.state) {
    case "sending": return `sending ${image.sent ?? 0} %`;
    case "refused": return `waiting for the server, ${image.error}`;
    case "waiting": return image.ahead ? `waiting, ${image.ahead} before it` : "waiting";
    case "running": return all > 1 ? `tile ${Math.min(done + 1, all)} of ${all}` : "predicting";
    case "failed": return `failed: ${image.error}`;
    case "done": return image.view ? String(image.view.objects.length) : image === current ? "drawing" : "done";
    default: return image.state;
  }
}

function showProgress(image) {
  image.chip.querySelector(".state").textContent = image.state === "failed" ? "failed" : describeState(image);
  image.chip.className = `chip ${image.state}`;
  panel.setImages(images);
  if (image !== current) return;
  const busy = ["sending", "refused", "waiting", "running"].includes(image.state);
  element("progress").hidden = image.state === "done" && Boolean(image.view);
  element("doing").textContent = `${image.name}: ${describeState(image)}`;
  element("bar").hidden = element("cancel").hidden = !busy;
  const [done, all] = image.tiles ?? [0, 1];
  if (image.state === "running" && all > 1) Object.assign(element("bar"), { value: done, max: all });
  else if (image.state === "sending") Object.assign(element("bar"), { value: image.sent ?? 0, max: 100 });
  else element("bar").removeAttribute("value");
}

function fail(image, error) {
  [image.state, image.error] = ["failed", error.message];
  showProgress(image);
}

function addChip(image) {
  const chip = element("chip").content.firstElementChild.cloneNode(true);
  chip.querySelector(".name").textContent = chip.querySelector(".name").title = image.name;
  chip.querySelector(".name").addEventListener("click", () => show(image));
  chip.querySelector(".remove").addEventListener("click", () => drop(image));
  image.chip = chip;
  images.push(image);
  element("images").append(chip);
  store();
  if (!current) show(image);
  showProgress(image);
}

function drop(image) {
  image.dropped = true;
  if (image.id) remove(image.id);
  image.view?.picture.close();
  images.splice(images.indexOf(image), 1);
  image.chip.remove();
  panel.setImages(images);
  store();
  if (image === current) show(images.at(-1) ?? null);
}

// A reloaded page finds its images again.
function store() {
  const known = images.filter((image) => image.id).map(({ id, name }) => ({ id, name }));
  sessionStorage.setItem(STORED, JSON.stringify(known));
}

async function follow(image) {
  while (!image.dropped) {
    try {
      Object.assign(image, await getJson(`page/images/${image.id}`));
    } catch (error) {
      if (error instanceof Refused) return fail(image, error);
      await pause(5 * POLL); // the network is away for a moment
      continue;
    }
    showProgress(image);
    if (image.state === "done" && image === current) await show(image);
    if (!["waiting", "running"].includes(image.state)) return;
    await pause(POLL);
  }
}

async function send(file) {
  const image = { name: file.name, state: "sending" };
  addChip(image);
  if (file.size > config.max_bytes) {
    return fail(image, new Error(`the file has more than ${Math.round(config.max_bytes / 2 ** 20)} MB, which the server takes at most.`));
  }
  while (!image.dropped) {
    try {
      const found = await upload(file, file.name, (sent, total) => {
        image.sent = Math.round((100 * sent) / Math.max(total, 1));
        showProgress(image);
      });
      const [first, ...others] = found;
      if (image.dropped) return found.forEach(({ id }) => remove(id));
      Object.assign(image, first, { state: "waiting" });
      image.chip.querySelector(".name").textContent = image.name;
      for (const other of others) {
        const page = { ...other, state: "waiting" };
        addChip(page);
        follow(page);
      }
      store();
      return follow(image);
    } catch (error) {
      if (error.status !== 429) return fail(image, error);
      [image.state, image.error] = ["refused", error.message];
      showProgress(image);
      await pause(1000 * error.retryAfter);
      image.state = "sending";
    }
  }
}

// A few at a time: the server's queue is for others too.
const queue = [];
let sending = 0;
async function sendAll(files) {
  queue.push(...files);
  while (queue.length && sending < 3) {
    sending += 1;
    send(queue.shift()).finally(() => {
      sending -= 1;
      sendAll([]);
    });
  }
}

element("cancel").addEventListener("click", () => drop(current));
element("fit").addEventListener("click", () => viewer.fit());
element("larger").addEventListener("click", () => viewer.zoom(1.5));
element("smaller").addEventListener("click", () => viewer.zoom(1 / 1.5));
element("masks").addEventListener("click", (event) => {
  viewer.showMasks = !viewer.showMasks;
  event.currentTarget.setAttribute("aria-pressed", String(viewer.showMasks));
  viewer.redraw();
});
for (const stain of config.examples) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = button.ariaLabel = `Example: ${stain}`;
  button.append(Object.assign(new Image(), { src: `page/examples/${stain}.png`, alt: "" }));
  button.addEventListener("click", async () => {
    sendAll([new File([await getBlob(`page/examples/${stain}.png`)], `${stain}.png`, { type: "image/png" })]);
  });
  if (!element("examples").childNodes.length) element("examples").append("Examples");
  element("examples").append(button);
}
for (const { id, name } of JSON.parse(sessionStorage.getItem(STORED) ?? "[]")) {
  const image = { id, name, state: "waiting" };
  addChip(image);
  follow(image);
}
begin();
