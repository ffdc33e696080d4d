"""Channels of an image on their way into the network: nothing is lost in silence, one rule on every way."""

import cv2
import numpy as np
import pytest
import tifffile
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.apps.predict_files.sources import iterate_images
from maskrcnn_plus.config import get_config, skip_pretrained
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.images import ImageReadError, read_image
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.windows import open_windows
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tiling import predict_tiled
from maskrcnn_plus.input_channels import follow_dataset_channels
from maskrcnn_plus.overrides import apply_overrides


def stack(count, dtype=np.uint8, size=(24, 30)):
    return np.random.default_rng(count).integers(0, 256, (count, *size)).astype(dtype)


class Seeing(nn.Module):
    """Keeps its inputs and finds nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batch):
        self.seen += [example["image"].permute(1, 2, 0).numpy() for example in batch]
        return [{"instances": self.nothing(example["height"], example["width"])} for example in batch]

    def nothing(self, height, width):
        masks, boxes = torch.zeros(0, height, width, dtype=torch.bool), Boxes(torch.zeros(0, 4))
        found = Instances((height, width), pred_masks=masks, pred_boxes=boxes, scores=torch.zeros(0))
        found.pred_classes = torch.zeros(0, dtype=torch.int64)
        return found


def predictor_of(**options):
    mapper = L(InstanceMapper)(is_train=False, augmentations=[], **options)
    config = {"model": L(Seeing)(), "dataloader": {"test": {"mapper": mapper}}}
    return Predictor(OmegaConf.create(config, flags={"allow_objects": True}), "random")


def on_all_ways(path, **options):
    """What the network gets of a file: in training, and in prediction by path, by window, in a run and by tile."""
    predictor = predictor_of(**options)
    example = InstanceMapper(True, [], **options)({"file_name": str(path), "annotations": []})
    found = [example["image"].permute(1, 2, 0).numpy()]
    predictor.predict(str(path))
    with open_windows(
        str(path), rule=ChannelRule(options.get("channels", 3), options.get("select"), options.get("projection"))
    ) as windows:
        predictor.predict(windows)
    for image in iterate_images(InputFile(str(path), "name"), predictor.mapper.rule):
        with image.open() as windows:
            predictor.predict(windows)
            predict_tiled(predictor, windows, tile_size=64, scale=1.0)
    return [*found, *predictor.model.seen]


def assert_sees(path, expected, **options):
    seen = on_all_ways(path, **options)
    assert len(seen) == 5
    for image in seen:
        np.testing.assert_array_equal(image, expected)


def open_all(path, rule):
    """Pixels of each image of a file in a run."""
    found = []
    for image in iterate_images(InputFile(str(path), "name"), rule):
        with image.open() as windows:
            found.append(windows.reduced(1))
    return found


def assert_refused(path, message, **options):
    with pytest.raises(ImageReadError, match=message):
        InstanceMapper(True, [], **options)({"file_name": str(path), "annotations": []})
    predictor = predictor_of(**options)
    with pytest.raises(ImageReadError, match=message):
        predictor.predict(str(path))
    with pytest.raises(ImageReadError, match=message):
        open_all(path, predictor.mapper.rule)


@pytest.mark.parametrize("count", [2, 5])
def test_channels_of_three_given_2_or_5_name_the_option_that_picks(tmp_path, count):
    tifffile.imwrite(tmp_path / "x.tif", stack(count), photometric="minisblack", metadata={"axes": "CYX"})
    assert_refused(
        tmp_path / "x.tif", rf"x\.tif: the image has {count} channels where 3 .*dataset\.channels picks them"
    )
    with pytest.raises(ImageReadError, match=rf"{count} channels where 3 .*dataset\.channels"):
        predictor_of().predict(np.moveaxis(stack(count), 0, 2))
    four = stack(4, np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", four, photometric="minisblack", metadata={"axes": "CYX"})
    assert_refused(tmp_path / "x.tif", "4 channels where 3")
    with pytest.raises(ImageReadError, match=r"4 channels where 3 .*dataset\.channels"):
        predictor_of().predict(np.moveaxis(four, 0, 2))


@pytest.mark.parametrize("select", [[0, 0, 1], [4, 2, 0], [3]])
@pytest.mark.parametrize(
    "layout",
    [{"metadata": {"axes": "CYX"}}, {"planarconfig": "separate"}, {"tile": (16, 16), "metadata": {"axes": "CYX"}}, {}],
    ids=str,
)
def test_picked_channels_are_seen_in_order_on_every_way(tmp_path, select, layout):
    pixels = stack(5)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="minisblack", **layout)
    picked = np.moveaxis(pixels[select], 0, 2)
    assert_sees(tmp_path / "x.tif", np.repeat(picked, 3, axis=2) if len(select) == 1 else picked, select=select)
    predictor = predictor_of(select=select)
    predictor.predict(np.moveaxis(pixels, 0, 2))
    np.testing.assert_array_equal(predictor.model.seen[0], on_all_ways(tmp_path / "x.tif", select=select)[0])


def test_channels_are_picked_by_their_ome_names(tmp_path):
    pixels = stack(3)
    path = tmp_path / "x.ome.tif"
    names = ["DAPI", "GFP", "mCherry"]
    tifffile.imwrite(
        path, pixels, photometric="minisblack", ome=True, metadata={"axes": "CYX", "Channel": {"Name": names}}
    )
    assert_sees(path, np.moveaxis(pixels[[2, 0, 0]], 0, 2), select=["mcherry", "DAPI", "DAPI"])
    assert_refused(
        path, r"no channel of the name 'YFP', its channels are 'DAPI', 'GFP', 'mCherry'", select=["YFP", 0, 0]
    )
    assert_refused(path, r"picks channel 3 \(from 0\), the image has 3", select=[0, 1, 3])
    assert_refused(path, r"picks 2 channels, the network takes 3", select=[0, 1])
    tifffile.imwrite(tmp_path / "plain.tif", pixels, photometric="minisblack", metadata={"axes": "CYX"})
    assert_refused(tmp_path / "plain.tif", "it names no channels", select=["GFP", "GFP", "GFP"])
    stacks = np.stack([pixels, pixels[::-1]])
    tifffile.imwrite(
        path, stacks, photometric="minisblack", ome=True, metadata={"axes": "TCYX", "Channel": {"Name": names}}
    )
    seen = []
    for image in iterate_images(InputFile(str(path), "name"), ChannelRule(3, ("GFP", "GFP", "DAPI"))):
        with image.open() as windows:
            seen.append(windows.reduced(1))
    np.testing.assert_array_equal(seen, [np.moveaxis(pixels[[1, 1, 0]], 0, 2), np.moveaxis(pixels[[1, 1, 2]], 0, 2)])


@pytest.mark.parametrize("projection", ["max", "mean"])
@pytest.mark.parametrize(
    "options", [{"metadata": {"axes": "ZYX"}}, {"imagej": True, "metadata": {"axes": "ZYX"}}, {}], ids=str
)
def test_a_z_stack_becomes_one_image(tmp_path, projection, options):
    pixels = stack(4, np.uint16) * 257
    tifffile.imwrite(tmp_path / "z.tif", pixels, photometric="minisblack", **options)
    expected = pixels.max(axis=0) if projection == "max" else np.rint(pixels.mean(axis=0))
    expected = np.repeat(expected.astype(np.float32)[:, :, None] / np.float32(257), 3, axis=2)
    assert_sees(tmp_path / "z.tif", expected, projection=projection)
    records = [{"file_name": str(tmp_path / "z.tif"), "annotations": []}]
    assert check_dataset(records, rule=ChannelRule(None, projection=projection), decode=True) == records


def test_a_stack_is_pages_in_prediction_and_names_the_option_in_training(tmp_path):
    tifffile.imwrite(tmp_path / "z.tif", stack(4), photometric="minisblack", metadata={"axes": "ZYX"})
    assert sum(1 for _ in iterate_images(InputFile(str(tmp_path / "z.tif"), "name"))) == 4
    for read in (InstanceMapper(True, []), predictor_of().mapper):
        with pytest.raises(ImageReadError, match=r"z\.tif.*stack.*dataset\.projection"):
            read({"file_name": str(tmp_path / "z.tif"), "annotations": []})
    with pytest.raises(DataError, match=r"z\.tif.*stack.*dataset\.projection"):
        check_dataset([{"file_name": str(tmp_path / "z.tif"), "annotations": []}], rule=ChannelRule(None))


def test_planes_of_several_channels_are_projected_film_by_film(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 24, 30), dtype=np.uint8)  # T, Z, C
    tifffile.imwrite(tmp_path / "tzc.tif", pixels, imagej=True, metadata={"axes": "TZCYX"})
    rule = ChannelRule(3, (1, 0, 0), "max")
    found = []
    for image in iterate_images(InputFile(str(tmp_path / "tzc.tif"), "name"), rule):
        with image.open() as windows:
            found.append(windows.reduced(1))
    np.testing.assert_array_equal(found, [np.moveaxis(film.max(axis=0)[[1, 0, 0]], 0, 2) for film in pixels])


@pytest.mark.parametrize("extra", [["unassalpha"], ["assocalpha"], ["unspecified"]])
def test_only_what_a_tiff_says_is_alpha_is_left_out(tmp_path, extra):
    for samples, photometric in ((4, "rgb"), (2, "minisblack")):
        pixels = np.moveaxis(stack(samples), 0, 2)
        path = tmp_path / "x.tif"
        tifffile.imwrite(path, pixels, photometric=photometric, planarconfig="contig", extrasamples=extra)
        if extra == ["unspecified"]:
            assert_refused(path, rf"x\.tif: the image has {samples} channels where 3")
        else:
            assert_sees(path, np.broadcast_to(pixels[:, :, : samples - 1], (24, 30, 3)))
        np.testing.assert_array_equal(read_image(str(path), samples), pixels)


def test_alpha_of_other_files_and_of_arrays(tmp_path, caplog):
    pixels = np.moveaxis(stack(4), 0, 2)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(pixels).save(tmp_path / "rgba.webp", lossless=True, exact=True)
    cv2.imwrite(str(tmp_path / "wide.png"), pixels[:, :, [2, 1, 0, 3]].astype(np.uint16) * 257)
    for name in ("rgba.png", "rgba.webp", "wide.png"):
        assert_sees(tmp_path / name, pixels[:, :, :3])
    Image.fromarray(pixels[:, :, :2], "LA").save(tmp_path / "la.png")
    assert_sees(tmp_path / "la.png", np.repeat(pixels[:, :, :1], 3, axis=2))

    predictor = predictor_of()
    predictor.predict(pixels)
    assert "fourth channel is taken for the alpha" in caplog.text
    caplog.clear()
    predictor.predict(np.dstack([pixels[:, :, :3], np.full((24, 30), 255, np.uint8)]))
    assert not caplog.text
    assert all(np.array_equal(image, pixels[:, :, :3]) for image in predictor.model.seen)
    with pytest.raises(ImageReadError, match=r"2 channels where 3 .*dataset\.channels"):
        predictor.predict(pixels[:, :, :2])


def test_unnamed_pages_that_are_left_out_are_said(tmp_path, caplog):
    tifffile.imwrite(tmp_path / "x.tif", stack(5), photometric="minisblack")
    read_image(str(tmp_path / "x.tif"), ChannelRule(3, (0, 0, 1)))
    assert r"5 pages, of which nothing says what they are" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "channels=0"),
        ({"select": ()}, r"dataset\.channels="),
        ({"select": (0.5,)}, r"dataset\.channels="),
        ({"select": (-1, 0, 0)}, r"dataset\.channels="),
        ({"select": (True,)}, r"dataset\.channels="),
        ({"projection": "sum"}, r"dataset\.projection='sum'"),
    ],
)
def test_wrong_values_name_their_option(values, message):
    with pytest.raises(ValueError, match=message):
        ChannelRule(**values)
    assert ChannelRule(select="DAPI").select == ("DAPI",)


@pytest.mark.parametrize("name", ["demo/mask_rcnn_lite0_fpn", "coco/mask_rcnn_r50_fpn_3x"])
def test_the_network_follows_the_number_of_channels(name):
    cfg = get_config(name)
    skip_pretrained(cfg)
    cfg = apply_overrides(cfg, ["dataset.channels=[0,DAPI]"])
    follow_dataset_channels(cfg)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    first = next(module for module in model.backbone.bottom_up.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == len(model.pixel_mean) == len(model.pixel_std) == 2
    mappers = [instantiate(cfg.dataloader[part].mapper) for part in ("train", "test")]
    assert [mapper.rule for mapper in mappers] == [ChannelRule(2, (0, "DAPI"))] * 2
    cfg = get_config(name)
    before = cfg.model.copy()
    for chosen in ([0, 0, 1], [1], None):
        cfg.dataset.channels = chosen
        follow_dataset_channels(cfg)
        assert cfg.model == before
