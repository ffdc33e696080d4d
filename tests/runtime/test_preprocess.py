"""Without PyTorch an image becomes the input of the network that the mapper of the config makes of it."""

import detectron2.data.transforms as T
import numpy as np
import pytest
from detectron2.data import DatasetMapper

from maskrcnn_plus.data import InstanceMapper, InterpolateShortestEdge, MMCVResize
from maskrcnn_plus.data.augmentation import ScaleImage
from maskrcnn_plus.inference.examples import make_example
from maskrcnn_plus.model_folder import Preprocessing, Resize
from maskrcnn_plus.runtime.preprocess import prepare_input

RESIZES = {
    "scale": (Resize("scale", 1.5, max_size=100), ScaleImage(1.5, 100)),
    "detectron2": (Resize("detectron2", short_side=60, max_size=110), T.ResizeShortestEdge(60, 110, "choice")),
    "torchvision": (Resize("torchvision", short_side=60, max_size=110), InterpolateShortestEdge(60, 110)),
    "mmcv": (Resize("mmcv", short_side=60, max_size=110), MMCVResize(60, 110)),
    "none": (Resize("none"), T.NoOpTransform()),
}
IMAGES = {
    "colour": ((40, 70, 3), np.uint8),
    "large": ((170, 130, 3), np.uint8),
    "grey": ((91, 50), np.uint8),
    "16 bits": ((60, 60), np.uint16),
    "floats": ((33, 80, 3), np.float32),
}


def draw(shape, dtype):
    values = np.random.default_rng(0).random(shape)
    return (values * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)


def rules(resize, order="RGB", channels=3, **options):
    return Preprocessing(channels, order, resize, (0.0,) * channels, (1.0,) * channels, **options)


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("percentiles", [None, (1.0, 99.0)])
def test_it_is_the_mappers(image, resize, percentiles):
    pixels, (rule, augmentation) = draw(*IMAGES[image]), RESIZES[resize]
    mapper = InstanceMapper(False, [augmentation], percentiles=percentiles, image_format="BGR")
    expected = make_example(mapper, pixels, "the image")
    found, size = prepare_input(pixels, rules(rule, "BGR", percentiles=percentiles))
    assert size == (expected["height"], expected["width"]) == pixels.shape[:2]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected["image"].numpy(), atol=0.01)  # of 255, OpenCV beside PyTorch


@pytest.mark.parametrize("image", IMAGES)
def test_it_is_that_of_detectron2s_mapper(image):
    resize, augmentation = RESIZES["detectron2"]
    mapper = DatasetMapper(is_train=False, augmentations=[augmentation], image_format="BGR")
    expected = make_example(mapper, draw(*IMAGES[image]), "the image")
    found, _ = prepare_input(draw(*IMAGES[image]), rules(resize, "BGR", eight_bit=True))
    np.testing.assert_array_equal(found[0], expected["image"].numpy())


def test_channels_are_chosen():
    pixels = draw((20, 30, 4), np.uint8)
    found, _ = prepare_input(pixels, rules(Resize("none"), channels=2, select=(3, 0)))
    np.testing.assert_array_equal(found[0], pixels[:, :, [3, 0]].transpose(2, 0, 1))
    with pytest.raises(ValueError, match="the image has 5 channels where 3 are wanted"):
        prepare_input(draw((20, 30, 5), np.uint8), rules(Resize("none")))
