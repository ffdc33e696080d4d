"""What the predictor makes of arrays and files, before its model sees them."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import Instances
from omegaconf import OmegaConf
from torch import nn

from maskrcnn_plus.data import InstanceMapper, ScaleImage
from maskrcnn_plus.data.images import ImageReadError
from maskrcnn_plus.inference.predictor import Predictor


class SeeingModel(nn.Module):
    """Keeps its inputs and finds nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch):
        self.seen += batch
        return [{"instances": Instances((e["height"], e["width"]), scores=torch.zeros(0))} for e in batch]


def predictor_of(mapper=None):
    mapper = mapper or L(DatasetMapper)(is_train=False, augmentations=[], image_format="RGB")
    config = {"model": L(SeeingModel)(), "dataloader": {"test": {"mapper": mapper}}}
    return Predictor(OmegaConf.create(config, flags={"allow_objects": True}), "random")


def instance_mapper(**options):
    return L(InstanceMapper)(is_train=False, augmentations=[], **options)


def seen_by(predictor, *images, **options):
    """What the model gets of images, as arrays [H, W, C]."""
    predictor.model.seen.clear()
    predictor.predict(list(images), **options)
    return [example["image"].permute(1, 2, 0).numpy() for example in predictor.model.seen]


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return str(path)


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
def test_array_is_what_its_file_is_to_detectron2s_mapper(image_file, image_format):
    mapper = L(DatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=30, max_size=200)],
        image_format=image_format,
    )
    predictor = predictor_of(mapper)
    (expected,) = seen_by(predictor, image_file)
    (found,) = seen_by(predictor, cv2.imread(image_file)[:, :, ::-1])
    reference = instantiate(mapper)({"file_name": image_file})["image"]
    assert np.array_equal(expected, reference.permute(1, 2, 0).numpy())
    assert np.array_equal(found, expected)


def test_other_depths_become_8_bits_for_detectron2s_mapper():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (9, 11), dtype=np.uint8)
    predictor = predictor_of()
    rgba = np.dstack([grey, grey, grey, rng.integers(0, 256, (9, 11), dtype=np.uint8)])
    images = seen_by(predictor, grey, grey[:, :, None], grey * np.uint16(257), grey / 255.0, rgba)
    for image in images:
        assert image.dtype == np.uint8
        assert np.array_equal(image, np.dstack([grey] * 3))


@pytest.mark.parametrize("options", [{}, {"percentiles": (1, 99.8)}, {"channels": 1}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_array_is_what_its_file_is_to_our_mapper(tmp_path, options, dtype):
    path = tmp_path / "image.png"
    limit = np.iinfo(dtype).max + 1
    pixels = np.random.default_rng(0).integers(0, limit, (20, 30, 3)).astype(dtype)
    cv2.imwrite(str(path), pixels[:, :, ::-1])
    mapper = instance_mapper(**options)
    mapper.augmentations = [L(ScaleImage)(scale=1.5)]
    expected, found = seen_by(predictor_of(mapper), path, pixels)
    assert np.array_equal(found, expected)
    assert found.shape == (30, 45, options.get("channels", 3))


def test_intensity_range_of_the_whole_makes_a_part_look_as_in_the_whole():
    whole = np.random.default_rng(0).gamma(2, 700, (64, 80)).astype(np.uint16)
    whole[:, 40:] //= 4
    predictor = predictor_of(instance_mapper(percentiles=(1.0, 99.8)))
    (expected,) = seen_by(predictor, whole)
    (own,) = seen_by(predictor, whole[:, 40:])
    limits = predictor.intensity_range(whole)
    (part,) = seen_by(predictor, whole[:, 40:], intensity_range=limits)
    assert np.array_equal(part, expected[:, 40:])
    assert not np.allclose(own, part)
    assert limits == pytest.approx(tuple(np.percentile(np.dstack([whole] * 3), (1.0, 99.8))))
    assert predictor_of(instance_mapper()).intensity_range(whole) is None
    with pytest.raises(ValueError, match="low <= high"):
        predictor.predict(whole, intensity_range=(5, 4))
    with pytest.raises(ValueError, match=r"some\.png.*intensity_range"):
        predictor.predict("some.png", intensity_range=limits)


BAD_ARRAYS = [
    (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
    (np.zeros(5, np.uint8), r"shape \(5,\)"),
    (np.zeros((2, 3, 4, 5), np.uint8), r"shape \(2, 3, 4, 5\)"),
    (np.zeros((4, 4, 5), np.uint8), "5 channels"),
    (np.full((4, 4), np.nan), "NaN or infinite"),
    (np.full((4, 4), np.inf), "NaN or infinite"),
    (np.full((4, 4), 300.0), "value range"),
    (np.zeros((4, 4), np.complex64), "complex64"),
    (np.array([["a", "b"]]), "not supported"),
]


@pytest.mark.parametrize(("array", "message"), BAD_ARRAYS, ids=[message for _, message in BAD_ARRAYS])
@pytest.mark.parametrize("mapper", [None, instance_mapper()], ids=["DatasetMapper", "InstanceMapper"])
def test_bad_arrays_are_named(array, message, mapper):
    predictor = predictor_of(mapper)
    with pytest.raises(ImageReadError, match=f"^the image.*{message}"):
        predictor.predict(array)
    with pytest.raises(ImageReadError, match=f"^image 1 of the list.*{message}"):
        predictor.predict([np.zeros((4, 4), np.uint8), array])


def test_bad_files_and_other_things_are_named(tmp_path, image_file):
    predictor = predictor_of()
    (tmp_path / "text.png").write_text("text")
    for name in ("text.png", "missing.png"):
        with pytest.raises(ImageReadError, match=name):
            predictor.predict([image_file, tmp_path / name])
    with pytest.raises(TypeError, match=r"image 0 of the list.*Tensor"):
        predictor.predict([torch.zeros(3, 4, 4)])
    with pytest.raises(TypeError, match="the image is a NoneType"):
        predictor.predict(None)
    with pytest.raises(ValueError, match="batch_size is 0"):
        predictor.predict([image_file], batch_size=0)


def test_image_that_the_augmentations_shrink_to_nothing():
    resize = L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)
    mapper = L(DatasetMapper)(is_train=False, augmentations=[resize], image_format="RGB")
    predictor = predictor_of(mapper)
    with pytest.raises(ValueError, match=r"^the image cannot be made an input"):
        predictor.predict(np.zeros((1, 5000), np.uint8))
    assert predictor.predict(np.zeros((1, 1), np.uint8)).image_size == (1, 1)


def test_mapper_of_files_only():
    mapper = L(FileMapper)(side=7)
    predictor = predictor_of(mapper)
    assert predictor.predict("anything").image_size == (7, 7)
    with pytest.raises(TypeError, match="FileMapper"):
        predictor.predict(np.zeros((4, 4), np.uint8))


class FileMapper:
    def __init__(self, side):
        self.side = side

    def __call__(self, dataset_dict):
        return {"image": torch.zeros(3, self.side, self.side), "height": self.side, "width": self.side}
