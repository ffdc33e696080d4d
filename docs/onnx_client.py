"""An exported model.onnx on one image with numpy, onnxruntime and opencv: onnx_client.py FOLDER IMAGE LABELS.png."""

import json
import sys

import cv2
import numpy as np
import onnxruntime


def interpolate(places, cells, support=1.0):
    """Weights of linear interpolation at places of a row of cells, 0 beyond them: [places, cells]."""
    return np.clip(1 - np.abs(places[:, None] - np.arange(cells)) / support, 0, None).astype(np.float32)


def resize(image, rule):
    """[H, W, C] -> [h, w, C] by preprocessing.resize."""
    sides, name, short, limit = image.shape[:2], rule["rule"], rule["short_side"], rule["max_size"] or np.inf
    short, limit = sorted((short, limit)) if name == "mmcv" else (short or min(sides), limit)
    factor = min(rule["scale"] * (short / min(sides)), limit / max(sides))
    size = tuple(max(round(side * factor) if name == "scale" else int(side * factor + 0.5), 1) for side in sides)
    if name == "detectron2" and image.dtype == np.uint8:  # PIL's bilinear: averages where it shrinks, rounds per axis
        for axis in (1, 0) if size != sides else ():
            step = sides[axis] / size[axis]
            matrix = interpolate((np.arange(size[axis]) + 0.5) * step - 0.5, sides[axis], max(step, 1))
            resized = np.tensordot(matrix / matrix.sum(1, keepdims=True), image, (1, axis))
            image = np.floor(np.moveaxis(resized, 0, axis) + 0.5)
        return image
    shrinks = name == "scale" and size[0] <= sides[0] and size[1] <= sides[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def network_input(image, rules):
    """[H, W] or [H, W, 3] in OpenCV's order -> float32 [1, C, h, w] in 0..255."""
    image = image[:, :, None] if image.ndim == 2 else image[:, :, ::-1]  # RGB
    if image.shape[2] != rules["channels"]:  # grey where RGB is wanted, or RGB where grey is
        grey = image.astype(np.float32) @ np.float32([0.299, 0.587, 0.114]) if image.shape[2] == 3 else image
        grey = np.rint(grey).astype(image.dtype) if image.dtype.kind == "u" else grey
        image = np.repeat(grey.reshape(*image.shape[:2], 1), rules["channels"], axis=2)
    if rules["percentiles"]:
        low, high = np.percentile(image, rules["percentiles"])
        low, high = (low, high) if low < high else (image.min(), max(image.max(), float(image.min()) + 1))
        image = np.clip((image.astype(np.float64) - low) * (255 / (high - low)), 0, 255).astype(np.float32)
    elif image.dtype == np.uint16:
        image = image.astype(np.float32) / 257
    image = np.ascontiguousarray(image[:, :, ::-1] if rules["color_order"] == "BGR" else image)
    image = np.float32(resize(image, rules["resize"]))
    return image.reshape(*image.shape[:2], -1).transpose(2, 0, 1)[None]


def main(folder, path, output):
    """Predict, and write an image of labels: 0 background, k the k-th object."""
    with open(f"{folder}/model.json", encoding="utf-8") as file:
        model = json.load(file)
    rules, before = model["postprocessing"], model["preprocessing"]
    if before["select"] or "torchvision" in (rules["mask_pasting"], before["resize"]["rule"]):
        sys.exit(f"{folder}: torchvision's rules and selected channels need maskrcnn_plus.runtime")
    image = cv2.imread(path, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)  # upright, without alpha
    if image is None:
        sys.exit(f"{path} cannot be read as an image")
    pixels = network_input(image, before)
    run = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"]).run
    boxes, scores, classes, masks, count = run(["boxes", "scores", "classes", "masks", "count"], {"image": pixels})
    (height, width), found = image.shape[:2], []
    boxes = np.clip(boxes * ([width / pixels.shape[3], height / pixels.shape[2]] * 2), 0, [width, height] * 2)
    labels = np.zeros((height, width), np.uint16)
    for k in np.argsort(-scores[:count], kind="stable"):
        (x0, y0, x1, y1), cells = boxes[k], masks.shape[1]
        if scores[k] < (rules["score_threshold"] or 0) or x0 >= x1 or y0 >= y1:
            continue
        rows = interpolate((np.arange(height) + 0.5 - y0) / (y1 - y0) * cells - 0.5, cells)
        columns = interpolate((np.arange(width) + 0.5 - x0) / (x1 - x0) * cells - 0.5, cells)
        mask = rows @ masks[k] @ columns.T >= rules["mask_threshold"]
        covered = sum((mask & other).sum() / max(mask.sum(), 1) for j, other in found if classes[j] == classes[k])
        if mask.sum() >= rules["min_mask_area"] and (covered <= rules["max_covered"] or rules["max_covered"] == 1):
            found.append((k, mask))
            labels[mask & (labels == 0)] = len(found)
            print(len(found), model["class_names"][classes[k]], f"{scores[k]:.3f}", boxes[k].round(1).tolist())
    cv2.imwrite(output, labels)


if __name__ == "__main__":
    main(*sys.argv[1:])
