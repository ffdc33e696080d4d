"""COCO AP: hotcoco against pycocotools, both against Detectron2's evaluator, and the detection limit."""

import json

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format
from detectron2.structures import Boxes, BoxMode, Instances

from maskrcnn_plus.evaluation import COCOMaskEvaluator
from maskrcnn_plus.evaluation.coco_api import coco_dataset, precision_and_recall, summarize
from maskrcnn_plus.masks.label_map import masks_to_rles

HEIGHT, WIDTH = 150, 180


def box_masks(boxes, height=HEIGHT, width=WIDTH):
    """[N, H, W] bool: boxes xyxy in whole pixels without their upper left quarter."""
    masks = np.zeros((len(boxes), height, width), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, np.asarray(boxes, dtype=int).reshape(-1, 4), strict=True):
        mask[y0:y1, x0:x1] = True
        mask[y0 : (y0 + y1) // 2, x0 : (x0 + x1) // 2] = False
    return masks


def random_boxes(rng, count):
    size = rng.choice([5, 9, 40, 120], size=(2, count), p=[0.3, 0.2, 0.2, 0.3])
    x0, y0 = rng.integers(0, WIDTH - size[0], count), rng.integers(0, HEIGHT - size[1], count)
    return np.stack([x0, y0, x0 + size[0], y0 + size[1]], axis=1)


def dataset_entry(image_id, boxes, classes, crowd, height=HEIGHT, width=WIDTH):
    annotations = [
        {
            "bbox": [float(side) for side in box],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": int(category),
            "iscrowd": int(is_crowd),
            "segmentation": rle,
        }
        for box, category, is_crowd, rle in zip(
            boxes, classes, crowd, masks_to_rles(box_masks(boxes, height, width)), strict=True
        )
    ]
    fields = {"file_name": f"{image_id}.png", "image_id": image_id, "height": height, "width": width}
    return {**fields, "annotations": annotations}


def prediction(boxes, classes, scores, as_rle=False, height=HEIGHT, width=WIDTH):
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(torch.as_tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4)))
    instances.pred_classes = torch.as_tensor(np.asarray(classes, dtype=np.int64))
    instances.scores = torch.as_tensor(np.asarray(scores, dtype=np.float32))
    masks = box_masks(boxes, height, width)
    if as_rle:
        instances.pred_masks_rle = masks_to_rles(masks)
    else:
        instances.pred_masks = torch.from_numpy(masks)
    return {"instances": instances}


def random_scene(seed, num_images=4, num_classes=3, num_objects=60, as_rle=False):
    """Detections are shifted copies of the objects, some of a wrong class, with tied scores, and random boxes."""
    rng = np.random.default_rng(seed)
    entries, outputs = [], []
    for image_id in range(1, num_images + 1):
        count = 0 if image_id == 2 else num_objects
        boxes, classes = random_boxes(rng, count), rng.integers(0, num_classes, count)
        entries.append(dataset_entry(image_id, boxes, classes, rng.random(count) < 0.1))
        shifted = np.clip(boxes + rng.integers(-1, 2, boxes.shape), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        found = np.concatenate([boxes, shifted, random_boxes(rng, 40)])
        guessed = np.concatenate(
            [classes, np.where(rng.random(count) < 0.9, classes, 0), rng.integers(0, num_classes, 40)]
        )
        keep = rng.random(len(found)) < 0.95
        scores = rng.integers(1, 40, len(found)) / 40
        outputs.append(prediction(found[keep], guessed[keep], scores[keep], as_rle=as_rle))
    return entries, outputs


@pytest.fixture
def register(request):
    names = []

    def _register(entries, class_names=None, **metadata):
        names.append(f"coco_{request.node.name}_{len(names)}")
        DatasetCatalog.register(names[-1], lambda: entries)
        MetadataCatalog.get(names[-1]).set(**metadata)
        if class_names is not None:
            MetadataCatalog.get(names[-1]).thing_classes = class_names
        return names[-1]

    yield _register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def evaluate(evaluator, entries, outputs):
    evaluator.reset()
    for entry, output in zip(entries, outputs, strict=True):
        evaluator.process([{"image_id": entry["image_id"]}], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("limit", [5, 100, 170])
def test_hotcoco_equals_pycocotools_bit_for_bit(task, limit):
    pytest.importorskip("hotcoco")
    entries, outputs = random_scene(seed=limit, num_classes=2, num_objects=90)
    dataset = coco_dataset(entries, ["a", "b"])
    detections = []
    for image_id, output in enumerate(outputs, start=1):
        instances = output["instances"]
        boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        rles = masks_to_rles(instances.pred_masks)
        for box, rle, category, score in zip(
            boxes, rles, instances.pred_classes.tolist(), instances.scores.tolist(), strict=True
        ):
            detection = {"image_id": image_id, "category_id": category, "score": score, "bbox": box}
            detections.append({**detection, "segmentation": rle})
    assert max(sum(d["image_id"] == i and d["category_id"] == 0 for d in detections) for i in (1, 3)) > 100
    hot = precision_and_recall(dataset, detections, task, limit, "hotcoco")
    reference = precision_and_recall(dataset, detections, task, limit, "pycocotools")
    assert hot[2] == "hotcoco"
    assert np.array_equal(hot[0], reference[0])
    assert np.array_equal(hot[1], reference[1])
    assert 0 < summarize(*hot[:2], ["a", "b"])["AP"] < 100


def write_coco_json(path, entries, category_ids):
    annotations = []
    for entry in entries:
        for annotation in entry["annotations"]:
            box = BoxMode.convert(annotation["bbox"], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            fields = {
                "id": len(annotations) + 1,
                "image_id": entry["image_id"],
                "category_id": category_ids[annotation["category_id"]],
                "bbox": [float(side) for side in box],
                "area": int(coco_mask.area(annotation["segmentation"])),
            }
            annotations.append({**annotation, "bbox_mode": None, **fields})
    images = [{"id": e["image_id"], **{key: e[key] for key in ("file_name", "height", "width")}} for e in entries]
    categories = [{"id": own, "name": f"class {own}"} for own in category_ids]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


@pytest.mark.parametrize("limit", [100, 500])
def test_equals_detectron2_evaluator_on_a_coco_json(tmp_path, limit):
    name, category_ids = f"coco_json_{limit}", [3, 7, 21]
    entries, outputs = random_scene(seed=7)
    write_coco_json(tmp_path / "instances.json", entries, category_ids)
    register_coco_instances(name, {}, str(tmp_path / "instances.json"), str(tmp_path))
    try:
        loaded = DatasetCatalog.get(name)
        ours = evaluate(COCOMaskEvaluator(name, limit, str(tmp_path / "ours")), loaded, outputs)
        theirs = COCOEvaluator(
            name,
            tasks=("bbox", "segm"),
            distributed=False,
            output_dir=str(tmp_path / "theirs"),
            max_dets_per_image=limit,
            use_fast_impl=False,
        )
        theirs = evaluate(theirs, loaded, outputs)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert list(ours) == ["bbox", "segm"]
    for task, figures in theirs.items():
        assert set(ours[task]) == {*figures, "AR"}
        for key, value in figures.items():
            assert ours[task][key] == pytest.approx(value, abs=1e-9, nan_ok=True), (task, key)
    assert np.isfinite(list(ours["segm"].values())).all()
    assert ours["bbox"]["AP"] != pytest.approx(ours["segm"]["AP"], abs=1e-3)
    written, reference = (
        json.loads((tmp_path / who / "coco_instances_results.json").read_text()) for who in ("ours", "theirs")
    )
    assert sorted(json.dumps(d, sort_keys=True) for d in written) == sorted(
        json.dumps(d, sort_keys=True) for d in reference
    )
    assert {detection["category_id"] for detection in written} == set(category_ids)


def grid_of_objects(count):
    numbers = np.arange(count)
    x0, y0 = 10 * (numbers % 15), 10 * (numbers // 15)
    return np.stack([x0, y0, x0 + 8, y0 + 8], axis=1)


@pytest.mark.parametrize("as_rle", [False, True])
def test_150_perfect_detections_of_150_objects(register, as_rle):
    boxes = grid_of_objects(150)
    entries = [dataset_entry("x", boxes, [0] * 150, [0] * 150)]
    outputs = [prediction(boxes, [0] * 150, np.linspace(1, 0.5, 150), as_rle=as_rle)]
    name = register(entries, ["nucleus"])
    for figures in evaluate(COCOMaskEvaluator(name), entries, outputs).values():
        assert [figures[key] for key in ("AP", "AR", "APs")] == pytest.approx([100] * 3)
        assert np.isnan(figures["APl"])
    for figures in evaluate(COCOMaskEvaluator(name, max_detections=100), entries, outputs).values():
        # Recall ends at 100 / 150: precision is 1 at the recall levels 0, 0.01, ..., 0.66, else 0.
        assert figures["AR"] == pytest.approx(100 * 100 / 150)
        assert figures["AP"] == pytest.approx(100 * 67 / 101)


def test_label_image_data_set_equals_the_same_as_rles(register, tmp_path):
    boxes = grid_of_objects(30)
    label_map = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    for number, mask in enumerate(box_masks(boxes), start=1):
        label_map[mask] = number
    cv2.imwrite(str(tmp_path / "labels.png"), label_map)
    as_rles = dataset_entry(1, boxes, [0] * 30, [0] * 30)
    as_labels = {**as_rles, "label_file_name": str(tmp_path / "labels.png"), "annotations": []}
    for number, annotation in enumerate(as_rles["annotations"], start=1):
        kept = {key: value for key, value in annotation.items() if key != "segmentation"}
        as_labels["annotations"].append({**kept, "label_id": number})
    found = prediction(boxes + [0, 0, 2, 0], [0] * 30, np.linspace(1, 0.1, 30))
    results = [evaluate(COCOMaskEvaluator(register([e], ["n"])), [e], [found]) for e in (as_rles, as_labels)]
    # IoU of the boxes 64 / 80 = 0.8, of the masks (4 * 8 + 4 * 3) / (48 + 60 - 44) = 0.6875
    for result in results:
        assert result["bbox"]["AP"] == pytest.approx(70)
        assert result["segm"]["AP"] == pytest.approx(40)


@pytest.mark.parametrize(
    ("num_objects", "num_detections", "expected"),
    [(2, 0, 0.0), (0, 2, float("nan")), (0, 0, float("nan"))],
    ids=["no_predictions", "no_ground_truth", "neither"],
)
def test_nothing_predicted_or_nothing_to_find_is_defined(register, num_objects, num_detections, expected):
    boxes = grid_of_objects(2)
    entries = [dataset_entry(1, boxes[:num_objects], [0] * num_objects, [0] * num_objects)]
    outputs = [prediction(boxes[:num_detections], [0] * num_detections, [0.9] * num_detections)]
    results = evaluate(COCOMaskEvaluator(register(entries, ["n"])), entries, outputs)
    for figures in results.values():
        for key in ("AP", "AP50", "AP75", "APs", "AR"):
            assert figures[key] == pytest.approx(expected, nan_ok=True)


def test_without_class_names_classes_are_numbered(register):
    boxes = grid_of_objects(2)
    entries = [dataset_entry(1, boxes, [0, 2], [0, 0])]
    results = evaluate(COCOMaskEvaluator(register(entries)), entries, [prediction(boxes, [0, 1], [0.9, 0.9])])
    figures = results["segm"]
    assert [figures[key] for key in ("AP-0", "AP-2", "AP")] == pytest.approx([100, 0, 50])
    assert np.isnan(figures["AP-1"])


def test_goes_through_detectron2_and_writes_whole_files(register, tmp_path):
    boxes = grid_of_objects(3)
    entries = [dataset_entry("a", boxes, [0, 1, 1], [0] * 3), dataset_entry("b", boxes[:0], [], [])]
    name = register(entries, ["x", "y"])
    outputs = {"a": prediction(boxes, [0, 1, 1], [0.9] * 3, as_rle=True), "b": prediction(boxes[:0], [], [])}

    def model(inputs):
        return [outputs[entry["image_id"]] for entry in inputs]

    loader = [[{"image_id": "a"}, {"image_id": "b"}]]
    results = inference_on_dataset(model, loader, COCOMaskEvaluator(name, output_dir=str(tmp_path)))
    print_csv_format(results)
    assert [results["segm"]["AP-y"], results["bbox"]["AP"]] == pytest.approx([100, 100])
    assert [path.name for path in tmp_path.iterdir()] == ["coco_instances_results.json"]
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [d["bbox"] for d in written] == [[0, 0, 8, 8], [10, 0, 8, 8], [20, 0, 8, 8]]
    assert np.array_equal(coco_mask.decode(written[1]["segmentation"]), box_masks(boxes)[1])


def test_boxes_alone_need_no_predicted_masks(register):
    boxes = grid_of_objects(2)
    entries = [dataset_entry(1, boxes, [0, 0], [0, 0])]
    output = prediction(boxes, [0, 0], [0.9, 0.8])
    output["instances"].remove("pred_masks")
    name = register(entries, ["n"])
    results = evaluate(COCOMaskEvaluator(name, tasks=("bbox",)), entries, [output])
    assert list(results) == ["bbox"]
    assert results["bbox"]["AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match=r"1\.png.*no masks"):
        evaluate(COCOMaskEvaluator(name), entries, [output])


def test_bad_input_names_the_image(register):
    boxes = grid_of_objects(2)
    entries = [dataset_entry("im", boxes, [0, 0], [0, 0]), dataset_entry("other", boxes, [0, 0], [0, 0])]
    good = prediction(boxes, [0, 0], [0.9, 0.8])
    evaluator = COCOMaskEvaluator(register(entries, ["n"]))
    with pytest.raises(ValueError, match=r"1 of 2 images.*'other'"):
        evaluate(evaluator, entries[:1], [good])
    with pytest.raises(ValueError, match=r"im\.png.*prediction has class 1"):
        evaluate(evaluator, entries, [prediction(boxes, [0, 1], [0.9, 0.8]), good])
    with pytest.raises(ValueError, match="'nowhere'"):
        evaluator.process([{"image_id": "nowhere"}], [good])
    bad_box = prediction(boxes, [0, 0], [0.9, 0.8])
    bad_box["instances"].pred_boxes.tensor[1, 2] = float("inf")
    with pytest.raises(ValueError, match=r"im\.png.*box that is NaN or infinite"):
        evaluator.process([{"image_id": "im"}], [bad_box])
    wrong_class = [dataset_entry("im", boxes, [0, 4], [0, 0])]
    with pytest.raises(ValueError, match=r"im\.png.*annotation has class 4"):
        evaluate(COCOMaskEvaluator(register(wrong_class, ["n"])), wrong_class, [good])


@pytest.mark.parametrize("options", [{"tasks": ()}, {"tasks": ("keypoints",)}, {"max_detections": 0}])
def test_bad_options(register, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        COCOMaskEvaluator(register([dataset_entry(1, grid_of_objects(1), [0], [0])]), **options)


def test_pycocotools_takes_over_where_hotcoco_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    dataset = coco_dataset([dataset_entry(1, grid_of_objects(1), [0], [0])], ["n"])
    detections = [{"image_id": 1, "category_id": 0, "score": 0.5, "bbox": [0.0, 0.0, 8.0, 8.0]}]
    precision, recall, library = precision_and_recall(dataset, detections, "bbox", 100)
    assert library == "pycocotools"
    assert summarize(precision, recall, ["n"])["AP"] == pytest.approx(100)
