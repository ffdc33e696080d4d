"""An exported model.onnx on one image with numpy, onnxruntime and opencv: onnx_client.py FOLDER IMAGE LABELS.png."""

import json
import math
import sys

import cv2
import numpy as np
import onnxruntime


def output_size(height, width, rule):
    """Height and width that the network wants; the four rules of preprocessing.resize."""
    short, shorter, longer, limit = (
        rule["short_side"],
        min(height, width),
        max(height, width),
        rule["max_size"] or math.inf,
    )
    if rule["rule"] == "none":
        return height, width
    if rule["rule"] == "scale":
        factor = min(rule["scale"] * (short / shorter if short else 1), limit / longer)
        return max(round(height * factor), 1), max(round(width * factor), 1)
    if rule["rule"] == "mmcv":
        factor = min(max(short, limit) / longer, min(short, limit) / shorter)
    else:  # "detectron2", "torchvision"
        factor = min(short / shorter, limit / longer)
    half = 0 if rule["rule"] == "torchvision" else 0.5
    return max(int(height * factor + half), 1), max(int(width * factor + half), 1)


def weights(places, cells, support=1.0):
    """Of linear interpolation at places of a row of cells: [places, cells]."""
    values = np.clip(1 - np.abs(places[:, None] - np.arange(cells)) / support, 0, None).astype(np.float32)
    return values, values / np.maximum(values.sum(1, keepdims=True), 1e-9)  # 0 beyond the cells; the nearest one there


def resize(image, size, rule):
    """[H, W, C] -> [h, w, C]."""
    if rule == "detectron2" and image.dtype == np.uint8:  # PIL's bilinear: averages where it shrinks, rounds per axis
        for axis, (new, old) in ((1, (size[1], image.shape[1])), (0, (size[0], image.shape[0]))):
            matrix = weights((np.arange(new) + 0.5) * old / new - 0.5, old, max(old / new, 1))[1]
            image = np.floor(np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis) + 0.5)
        return image
    shrinks = rule == "scale" and size[0] <= image.shape[0] and size[1] <= image.shape[1]
    image = image.astype(np.float32) if rule == "torchvision" else image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def network_input(image, rules):
    """[H, W] or [H, W, 3] in OpenCV's order -> float32 [1, C, h, w] in 0..255."""
    image = image[:, :, None] if image.ndim == 2 else image[:, :, 2::-1]  # RGB, without alpha
    image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 and rules["channels"] == 3 else image
    if rules["percentiles"]:
        low, high = np.percentile(image, rules["percentiles"])
        low, high = (low, high) if low < high else (image.min(), max(image.max(), image.min() + 1))
        image = np.clip((image.astype(np.float64) - low) * (255 / (high - low)), 0, 255).astype(np.float32)
    elif image.dtype == np.uint16:
        image = image.astype(np.float32) / 257
    image = np.ascontiguousarray(image[:, :, ::-1] if rules["color_order"] == "BGR" else image)
    size = output_size(*image.shape[:2], rules["resize"])
    image = resize(image, size, rules["resize"]["rule"]) if size != image.shape[:2] else image
    return np.asarray(image, np.float32).reshape(*size, -1).transpose(2, 0, 1)[None]


def paste(mask, box, height, width):
    """Probabilities [S, S] of a box -> bool [H, W], by mask_pasting="detectron2"."""
    y, x = ((np.arange(n) + 0.5 - box[a]) / (box[a + 2] - box[a]) for n, a in ((height, 1), (width, 0)))
    rows, columns = (weights(places * len(mask) - 0.5, len(mask))[0] for places in (y, x))
    return rows @ mask @ columns.T >= 0.5


def main(folder, path, output):
    """Predict, and write an image of labels: 0 background, k the k-th object."""
    with open(f"{folder}/model.json", encoding="utf-8") as file:
        model = json.load(file)
    image, rules = cv2.imread(path, cv2.IMREAD_UNCHANGED), model["postprocessing"]
    pixels = network_input(image, model["preprocessing"])
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
    boxes, scores, classes, masks, count = session.run(
        ["boxes", "scores", "classes", "masks", "count"], {"image": pixels}
    )
    (height, width), found = image.shape[:2], []
    boxes = np.clip(boxes * ([width / pixels.shape[3], height / pixels.shape[2]] * 2), 0, [width, height] * 2)
    labels = np.zeros((height, width), np.uint16)
    for k in np.argsort(-scores[:count], kind="stable"):
        if (boxes[k, 2:] <= boxes[k, :2]).any():
            continue
        mask = paste(masks[k], boxes[k], height, width)
        covered = sum((mask & other).sum() / max(mask.sum(), 1) for j, other in found if classes[j] == classes[k])
        if mask.sum() >= rules["min_mask_area"] and (covered <= rules["max_covered"] or rules["max_covered"] == 1):
            found.append((k, mask))
    found = [each for each in found if scores[each[0]] >= (rules["score_threshold"] or 0)]
    for number, (k, mask) in enumerate(found, start=1):
        labels[mask & (labels == 0)] = number
        print(number, model["class_names"][classes[k]], f"{scores[k]:.3f}", boxes[k].round(1).tolist())
    cv2.imwrite(output, labels)


if __name__ == "__main__":
    main(*sys.argv[1:])
