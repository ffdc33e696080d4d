"""Animations, other image formats and odd entries of folders: every frame is an image, every failure has a name."""

import os

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from maskrcnn_plus.apps.predict_files.inputs import InputFile, list_inputs
from maskrcnn_plus.apps.predict_files.run import predict_files
from maskrcnn_plus.apps.predict_files.sources import iterate_images
from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.images import ImageReadError, read_image
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.inference.predictor import Predictor


class FindsNothing(nn.Module):
    def forward(self, batch):
        return [{"instances": self.nothing(example["height"], example["width"])} for example in batch]

    def nothing(self, height, width):
        masks, boxes = torch.zeros(0, height, width, dtype=torch.bool), Boxes(torch.zeros(0, 4))
        found = Instances((height, width), pred_masks=masks, pred_boxes=boxes, scores=torch.zeros(0))
        found.pred_classes = torch.zeros(0, dtype=torch.int64)
        return found


FORMATS = {"x.gif": {}, "x.webp": {"lossless": True}, "x.png": {}}


def frames(count=4):
    """Grey images [40, 50, 3], a bright square that moves."""
    pixels = np.zeros((count, 40, 50, 3), dtype=np.uint8)
    for number in range(count):
        pixels[number, 5:20, 5 + 8 * number : 20 + 8 * number] = 40 * (number + 1)
    return pixels


def save(path, pixels, **options):
    first, *others = map(Image.fromarray, pixels)
    first.save(path, save_all=True, append_images=others, duration=100, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_each_frame_of_an_animation_is_an_image(tmp_path, name):
    path = str(tmp_path / name)
    save(path, frames(), **FORMATS[name])
    found = []
    for image in iterate_images(InputFile(path, "name")):
        with image.open() as windows:
            found.append(windows.reduced(1))
        assert (image.name, image.count) == (f"name/frame_{len(found):06d}", 4)
    assert np.array_equal(found, frames())
    skipping = [image for image in iterate_images(InputFile(path, "name")) if image.number == 3]
    with pytest.raises(ImageReadError, match=rf"{name}: an animation of 4 frames"):
        read_image(path)
    with pytest.raises(DataError, match=rf"{name}: an animation of 4 frames"):
        check_dataset([{"file_name": path, "annotations": []}])
    assert len(skipping) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_single_frame_is_the_file_itself(tmp_path, name):
    path = str(tmp_path / name)
    Image.fromarray(frames()[1]).save(path, **FORMATS[name])
    (image,) = iterate_images(InputFile(path, "name"))
    assert image.number == 0
    with image.open() as windows:
        assert np.array_equal(windows.reduced(1), frames()[1])
    assert np.array_equal(read_image(path), frames()[1])


def test_a_truncated_animation_gives_its_frames_and_then_an_error(tmp_path):
    path = tmp_path / "cut.gif"
    noise = np.random.default_rng(0).integers(0, 256, (5, 40, 50, 3), dtype=np.uint8)
    save(path, noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    seen = []

    def read_all():
        for image in iterate_images(InputFile(str(path), "name")):
            with image.open() as windows:
                seen.append(windows.reduced(1))

    with pytest.raises(ImageReadError, match=r"cut\.gif: "):
        read_all()
    assert 0 < len(seen) < 5


def test_jpeg_2000_is_read_and_taken_from_folders(tmp_path):
    Image.fromarray(frames()[1]).save(tmp_path / "x.jp2", irreversible=False)
    assert np.array_equal(read_image(str(tmp_path / "x.jp2")), frames()[1])
    assert [file.name for file in list_inputs(str(tmp_path))] == ["x"]


def test_frames_and_files_of_the_same_name_are_told_apart(tmp_path):
    (tmp_path / "x").mkdir()
    save(tmp_path / "x.png", frames())
    for number in (1, 2):
        Image.fromarray(frames()[0]).save(tmp_path / f"x/frame_{number:06d}.png")
    files = list_inputs(str(tmp_path), recursive=True)
    names = [image.name for file in files for image in iterate_images(file)]
    assert len(names) == len(set(names)) == 6


def test_what_a_folder_holds_is_predicted_named_as_failed_or_said_to_be_left_out(tmp_path, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(frames()[0]).save(folder / "good.png")
    save(folder / "film.gif", frames())
    os.symlink("nowhere.png", folder / "dangling.png")
    os.symlink("circle.png", folder / "circle.png")
    os.mkfifo(folder / "pipe.tif")
    (folder / "folder.png").mkdir()
    for name in ("notes.txt", "more.txt", "slide.czi"):
        (folder / name).touch()
    mapper = L(InstanceMapper)(is_train=False, augmentations=[])
    config = {"model": L(FindsNothing)(), "dataloader": {"test": {"mapper": mapper}}}
    predictor = Predictor(OmegaConf.create(config, flags={"allow_objects": True}), "random")
    summary = predict_files(predictor, str(folder), str(tmp_path / "out"), formats=["coco"], progress=False)
    assert summary.num_images == 5
    reasons = {os.path.basename(path): reason for path, reason in summary.failures}
    assert set(reasons) == {"dangling.png", "circle.png", "pipe.tif"}
    assert "link to nowhere.png, which is not there" in reasons["dangling.png"]
    assert "pipe" in reasons["pipe.tif"]
    assert ".czi (1), .txt (2)" in caplog.text
    again = list_inputs(str(folder / "*.png"))
    assert [os.path.basename(file.path) for file in again] == ["circle.png", "dangling.png", "good.png"]
