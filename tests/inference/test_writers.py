"""What is written: label images, COCO results, names of files, and that files appear whole."""

import contextlib
import io
import json

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from maskrcnn_plus.inference.writers import PredictionWriter, encode_png

HEIGHT, WIDTH = 40, 50


def random_instances(seed, count, height=HEIGHT, width=WIDTH):
    """Overlapping rectangles in falling order of score; every fourth mask is empty."""
    rng = np.random.default_rng(seed)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    boxes = torch.zeros(count, 4)
    for k in range(count):
        x, y = rng.integers(0, width - 12), rng.integers(0, height - 12)
        w, h = rng.integers(3, 12, 2)
        boxes[k] = torch.tensor([x, y, x + w, y + h])
        if k % 4 != 3:
            masks[k, y : y + h, x : x + w] = True
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor(np.sort(rng.uniform(0.1, 1, count))[::-1].copy(), dtype=torch.float32)
    instances.pred_classes = torch.tensor(rng.integers(0, 3, count))
    instances.pred_masks = masks
    return instances


def image_of(height=HEIGHT, width=WIDTH):
    return np.random.default_rng(9).integers(0, 256, (height, width, 3), dtype=np.uint8)


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_label_image_equals_a_loop_over_pixels(tmp_path):
    instances = random_instances(0, 20)
    with PredictionWriter(tmp_path) as writer:
        writer.write("a/cell.png", image_of(), instances)
    labels = cv2.imread(str(tmp_path / "labels/cell.png"), cv2.IMREAD_UNCHANGED)
    masks = instances.pred_masks.numpy()
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            covering = np.flatnonzero(masks[:, y, x])
            if len(covering):
                expected[y, x] = covering[0] + 1  # scores fall, so the first has the highest
    assert labels.dtype == np.uint16
    assert np.array_equal(labels, expected)


def test_overlay_file_is_the_returned_overlay(tmp_path):
    with PredictionWriter(tmp_path) as writer:
        overlay = writer.write("cell.png", image_of(), random_instances(1, 8))
    stored = cv2.imread(str(tmp_path / "overlays/cell.png"))[:, :, ::-1]
    assert np.array_equal(stored, overlay)
    assert not np.array_equal(overlay, image_of())


def test_results_load_in_pycocotools_with_the_same_masks(tmp_path):
    scenes = {"a.png": random_instances(2, 6), "b.png": random_instances(3, 0), "c.tif": random_instances(4, 9)}
    with PredictionWriter(tmp_path) as writer:
        for name, instances in scenes.items():
            writer.write(name, image_of(), instances)
    assert (writer.num_images, len(writer.results)) == (3, 15)
    truth = COCO()
    images = [{"id": k, "file_name": name, "height": HEIGHT, "width": WIDTH} for k, name in enumerate(scenes, start=1)]
    truth.dataset = {"images": images, "annotations": [], "categories": [{"id": k} for k in range(3)]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes(str(tmp_path / "predictions.json"))
    for k, (name, instances) in enumerate(scenes.items(), start=1):
        loaded = results.loadAnns(results.getAnnIds(imgIds=[k]))
        assert len(loaded) == len(instances)
        for index, entry in enumerate(loaded):
            x0, y0, x1, y1 = instances.pred_boxes.tensor[index].tolist()
            assert np.array_equal(coco_mask.decode(entry["segmentation"]), instances.pred_masks[index].numpy())
            assert entry["bbox"] == [x0, y0, x1 - x0, y1 - y0]
            assert entry["score"] == instances.scores[index].item()
            assert entry["category_id"] == instances.pred_classes[index].item()
            assert (entry["file_name"], entry["label_id"]) == (name, index + 1)


def test_more_than_65535_objects_give_a_32_bit_tiff(tmp_path):
    count, height, width = 65_537, 260, 260
    rles = []
    for k in range(count):  # object k is pixel k in column-major order
        rles.append({"size": [height, width], "counts": [k, 1, height * width - k - 1]})
    instances = Instances((height, width), pred_masks_rle=rles)
    instances.scores = torch.ones(count)
    instances.pred_classes = torch.zeros(count, dtype=torch.int64)
    instances.pred_boxes = Boxes(torch.zeros(count, 4))
    with pytest.MonkeyPatch.context() as patch, PredictionWriter(tmp_path) as writer:
        patch.setattr("maskrcnn_plus.inference.writers.draw_overlay", lambda image, *_: image)  # drawing takes long
        writer.write("many.png", image_of(height, width), instances)
    labels = tifffile.imread(tmp_path / "labels/many.tif")
    assert labels.dtype == np.uint32
    assert np.array_equal(labels.ravel(order="F")[:count], np.arange(1, count + 1))
    assert files_below(tmp_path / "labels") == ["many.tif"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/cell.png", "x/cell.tif", "x/cell.b.png"], ["cell", "cell_tif", "cell.b"]),
        (["x/cell.png", "y/cell.png", "z/y/cell.png"], ["cell", "y_cell", "z_y_cell"]),
        (["x/Cell.png", "y/cell.png"], ["Cell", "y_cell"]),
        (["cell.png", "cell.png", "./cell.png"], ["cell", "cell_png", "cell_2"]),
        (["demo://0/1/8x8/image.png", "demo://0/2/8x8/image.png"], ["image", "8x8_image"]),
        (["demo://0/2/8x8/image.png", "demo://0/1/8x8/image.png", "demo://0/3/8x8/image.png"], None),
        (["x/cell_tif.png", "x/cell.png", "x/cell.tif"], ["cell_tif", "cell", "cell_2"]),
        ([f"{'long' * 30}/{'name' * 30}.png", f"{'lang' * 30}/{'name' * 30}.png"], ["name" * 30, "name" * 30 + "_2"]),
    ],
)
def test_every_image_has_files_of_its_own(tmp_path, paths, names):
    with PredictionWriter(tmp_path) as writer:
        for k, path in enumerate(paths):
            writer.write(path, image_of(), random_instances(k, k + 1))
    found = files_below(tmp_path / "labels")
    assert len({name.lower() for name in found}) == len(paths)
    if names:
        assert found == sorted(f"{name}.png" for name in names)
        labels = [cv2.imread(str(tmp_path / f"labels/{name}.png"), cv2.IMREAD_UNCHANGED).max() for name in names]
        visible = [random_instances(k, k + 1).pred_masks.any() for k in range(len(paths))]
        assert all(label <= k + 1 for k, label in enumerate(labels))
        assert [label > 0 for label in labels] == visible


def test_results_are_written_when_the_work_breaks_off(tmp_path):
    def work():
        with PredictionWriter(tmp_path) as writer:
            writer.write("a.png", image_of(), random_instances(0, 3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 3
    assert files_below(tmp_path) == ["labels/a.png", "overlays/a.png", "predictions.json"]


def test_no_images_give_an_empty_list(tmp_path):
    with PredictionWriter(tmp_path / "new" / "folder"):
        pass
    assert json.loads((tmp_path / "new/folder/predictions.json").read_text()) == []


def test_input_is_never_replaced(tmp_path):
    (tmp_path / "overlays").mkdir()
    source = tmp_path / "overlays" / "cell.png"
    content = encode_png(image_of())
    source.write_bytes(content)
    with PredictionWriter(tmp_path) as writer, pytest.raises(ValueError, match="another output folder"):
        writer.write(str(source), image_of(), random_instances(0, 3))
    assert source.read_bytes() == content


def test_output_path_that_is_a_file_is_an_os_error(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match="out"):
        PredictionWriter(tmp_path / "out")


def test_image_of_another_size_is_refused_and_leaves_nothing(tmp_path):
    with PredictionWriter(tmp_path) as writer, pytest.raises(ValueError, match="size"):
        writer.write("a.png", image_of(20, 20), random_instances(0, 3))
    assert files_below(tmp_path) == ["predictions.json"]
