"""Cut-outs, backgrounds and counts: against masks drawn by hand and Detectron2's pasting of probabilities."""

import csv

import cv2
import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from PIL import Image

from maskrcnn_plus.mask_rcnn import postprocess
from maskrcnn_plus.results import write_results
from maskrcnn_plus.results.counts import merge_counts
from maskrcnn_plus.results.cutouts import cut_out, opacities, replace_background

HEIGHT, WIDTH = 60, 80
IMAGE = np.random.default_rng(0).integers(1, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def two_objects():
    """A rectangle of class 1 and an L of class 0 that overlap, and a third object without pixels."""
    masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 10:20, 30:50] = True
    masks[1, 15:40, 40:45] = True
    masks[1, 35:40, 40:70] = True
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.tensor([[30.0, 10, 50, 20], [40, 15, 70, 40], [0, 0, 5, 5]]))
    found.scores = torch.tensor([0.9, 0.8, 0.7])
    found.pred_classes = torch.tensor([1, 0, 0])
    found.pred_masks = masks
    return found


def with_probabilities(size=28):
    """Results of a mask head, as the model gives them with their probabilities."""
    raw = Instances((HEIGHT, WIDTH))
    raw.pred_boxes = Boxes(torch.tensor([[10.3, 5.1, 60.7, 50.2], [-4.0, 30.5, 20.2, 70.0]]))
    raw.scores, raw.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    raw.pred_masks = torch.stack([torch.sigmoid(8 * (0.8 - torch.hypot(x, y))), torch.sigmoid(6 * (0.5 - x * y))])[
        :, None
    ]
    return postprocess(raw, HEIGHT, WIDTH, keep_probabilities=True)


def test_a_cut_out_is_the_image_with_its_mask_as_alpha():
    found = two_objects()
    first, second, empty = cut_out(IMAGE, found)
    assert np.array_equal(first, np.dstack([IMAGE[10:20, 30:50], np.full((10, 20), 255, np.uint8)]))
    assert np.array_equal(second[..., :3], IMAGE[15:40, 40:70])
    assert np.array_equal(second[..., 3] > 0, found.pred_masks[1, 15:40, 40:70].numpy())
    assert empty.shape == (0, 0, 4)


def test_soft_edges_are_the_probabilities_that_detectron2_pastes():
    found = with_probabilities()
    pasted = paste_masks_in_image(found.pred_mask_probs, found.pred_boxes, (HEIGHT, WIDTH), threshold=-1)  # * 255
    for ((x, y), alpha), expected in zip(opacities(found, soft=True), pasted.numpy(), strict=True):
        full = np.zeros((HEIGHT, WIDTH))
        full[y : y + alpha.shape[0], x : x + alpha.shape[1]] = alpha
        assert np.abs(full - ((expected / 255.0 - 0.25) * 2).clip(0, 1) * 255).max() <= 3.1  # rounding, twice
        assert ((full > 0) & (full < 255)).sum() > 0
    hard = [alpha > 0 for _, alpha in opacities(found, soft=False)]
    assert [mask.sum() for mask in hard] == [rle_sum(found, k) for k in range(2)]


def rle_sum(found, k):
    return int(found.pred_masks_rle[[k]].to_dense().sum())


def test_without_probabilities_soft_edges_are_smoothed_masks():
    (x, y), alpha = opacities(two_objects(), soft=True)[0]
    full = np.zeros((HEIGHT, WIDTH), np.uint8)
    full[y : y + alpha.shape[0], x : x + alpha.shape[1]] = alpha
    mask = two_objects().pred_masks[0].numpy().astype(np.uint8) * 255
    assert np.abs(full.astype(int) - cv2.GaussianBlur(mask, (0, 0), 1.0)).max() <= 1


@pytest.mark.parametrize("soft", [False, True])
def test_backgrounds(soft):
    found = two_objects()
    inside = found.pred_masks.any(0).numpy()
    deep, far = (
        cv2.erode(inside.astype(np.uint8), np.ones((7, 7))),
        cv2.dilate(inside.astype(np.uint8), np.ones((9, 9))),
    )
    deep, far = (deep, far) if soft else (inside, inside)
    transparent = replace_background(IMAGE, found, soft=soft)
    assert np.array_equal(transparent[..., :3], IMAGE)
    assert (transparent[deep > 0, 3] > 240).all()
    assert (transparent[far == 0, 3] == 0).all()
    red = replace_background(IMAGE, found, "#ff0000", soft)
    assert (red[far == 0] == [255, 0, 0]).all()
    assert np.abs(red[deep > 0].astype(int) - IMAGE[deep > 0]).max() <= (15 if soft else 0)
    blurred = replace_background(IMAGE, found, "blur", soft)
    assert np.abs(blurred[deep > 0].astype(int) - IMAGE[deep > 0]).max() <= (15 if soft else 0)
    assert blurred[far == 0].std() < IMAGE[far == 0].std() / 3


@pytest.mark.parametrize("background", ["red", "#fff", "#gggggg", ""])
def test_another_background_is_refused(background, tmp_path):
    with pytest.raises(ValueError, match="transparent, blur or a colour"):
        write_results(tmp_path, "a", two_objects(), IMAGE, formats=["background"], background=background)


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_of_cut_outs_and_their_table(tmp_path):
    stale = tmp_path / "cutouts" / "a" / "9_ball.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier run")
    names = ["cell/1", "b"]
    files = write_results(
        tmp_path, "a", two_objects(), IMAGE, formats=["cutouts", "background"], class_names=names, background="#00ff00"
    )
    rows = rows_of(files["cutouts"])
    assert [(row["id"], row["class"], row["file"], row["x"], row["y"]) for row in rows] == [
        ("1", "b", "1_b.png", "30", "10"),
        ("2", "cell/1", "2_cell_1.png", "40", "15"),
        ("3", "cell/1", "", "0", "0"),
    ]
    assert sorted(path.name for path in stale.parent.iterdir()) == ["1_b.png", "2_cell_1.png"]
    for row, expected in zip(rows, cut_out(IMAGE, two_objects()), strict=False):
        if row["file"]:
            assert np.array_equal(np.asarray(Image.open(stale.parent / row["file"])), expected)
    expected = replace_background(IMAGE, two_objects(), "#00ff00")
    assert np.array_equal(np.asarray(Image.open(files["background"])), expected)


def test_no_objects_and_no_image(tmp_path):
    none = two_objects()[:0]
    files = write_results(tmp_path, "a", none, IMAGE, formats=["cutouts", "background", "counts"], class_names=["x"])
    assert rows_of(files["cutouts"]) == []
    assert (np.asarray(Image.open(files["background"]))[..., 3] == 0).all()
    assert rows_of(files["counts"]) == [{"image": "a", "x": "0", "total": "0", "covered": "0", "per_mm2": ""}]
    for kind in ("cutouts", "background"):
        with pytest.raises(ValueError, match=f"format {kind} needs the image"):
            write_results(tmp_path, "b", two_objects(), formats=[kind])


def test_counts_of_images_and_all_of_them(tmp_path):
    found = two_objects()
    first = write_results(tmp_path, "a", found, formats=["counts"], class_names=["x", "y"], pixel_size=2.0)["counts"]
    second = write_results(tmp_path, "b", found[:1], formats=["counts"])["counts"]
    merge_counts(tmp_path / "counts.csv", [first, second])
    covered = found.pred_masks.any(0).sum().item() / (HEIGHT * WIDTH)
    rows = rows_of(tmp_path / "counts.csv")
    assert [(row["image"], row["x"], row["y"], row["class 1"], row["total"]) for row in rows] == [
        ("a", "2", "1", "0", "3"),
        ("b", "0", "0", "1", "1"),
    ]
    assert float(rows[0]["covered"]) == pytest.approx(covered, rel=1e-5)
    assert float(rows[0]["per_mm2"]) == pytest.approx(3 / (HEIGHT * WIDTH * 4e-6), rel=1e-5)
    assert rows[1]["per_mm2"] == ""
    merge_counts(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text() == "image,total,covered,per_mm2\n"
