"""Exported folders find what the checkpoints find that they were made of."""

import json
import shutil

import numpy as np
import pytest
import same_objects
import torch
from hybrid_models import IN_PART, KINDS, coco_config, save_checkpoint, tiny_config

from maskrcnn_plus.apps.predict_files.fingerprint import predictor_fingerprint
from maskrcnn_plus.checkpoints.description import described_config, read_description
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.masks.measure import rle_ious

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'maskrcnn_plus[export]'")

from maskrcnn_plus.export.hybrid import HybridModel  # noqa: E402
from maskrcnn_plus.export.hybrid_parts import Candidate, _BodyNetwork, convert  # noqa: E402
from maskrcnn_plus.export.whole import export_whole  # noqa: E402
from maskrcnn_plus.inference.exported_parts import ExportedPart  # noqa: E402

SIZES = ((64, 96), (101, 67))


def export(weights, folder, precision="fp32", **options):
    hybrid = HybridModel(Predictor(weights, device="cpu", optimize=False), read_description(weights))
    hybrid.write(folder, precision, **options)
    return hybrid


def images(sizes=SIZES, seed=0):
    """Blobs: random grey values, magnified."""
    rng = np.random.default_rng(seed)
    for height, width in sizes:
        small = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        yield np.kron(small, np.ones((8, 8, 1), np.uint8))[:height, :width]


def assert_same(found, expected):
    assert found.image_size == expected.image_size
    assert len(found) == len(expected)
    if len(expected) == 0:
        return
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=0.01)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    ious = np.diag(rle_ious(list(found.pred_masks_rle), list(expected.pred_masks_rle)))
    empty = [not rle.any() for rle in expected.pred_masks_rle.to_dense().numpy()]
    assert (np.maximum(ious, empty) >= 0.99).mean() >= 0.99


@pytest.mark.parametrize("kind", [*KINDS, *IN_PART])
def test_finds_the_same_in_images_of_any_size(kind, tmp_path):
    weights = save_checkpoint(tmp_path / "model.pth", tiny_config(kind))
    hybrid = export(weights, tmp_path / "exported")
    original, exported = Predictor(weights, score_threshold=0.0), Predictor(tmp_path / "exported", score_threshold=0.0)
    found = 0
    for image in images():
        expected = original.predict(image)
        assert_same(exported.predict(image), expected)
        found += len(expected)
    assert found > 20
    assert bool(hybrid.staying) == (kind in IN_PART)
    assert exported.class_names == ["round", "long"]
    left = sum(p.numel() for p in exported.model.parameters())
    assert left < sum(p.numel() for p in original.model.parameters()) / (1 if kind in IN_PART else 4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint and its folder; tests copy what they change."""
    place = tmp_path_factory.mktemp("exported")
    weights = save_checkpoint(place / "model.pth", tiny_config("mask_rcnn_lite0_fpn"))
    export(weights, place / "folder")
    return weights, place / "folder"


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported[1], tmp_path / "copy")


def test_500_detections_and_none_and_batches(exported):
    weights, folder = map(str, exported)
    many = [f"model.roi_heads.box_predictor.{key}" for key in ("test_score_thresh=0.0", "test_nms_thresh=1.0")]
    many += ["model.proposal_generator.nms_thresh=1.0", "dataset.max_objects=500"]
    many += ["model.proposal_generator.pre_nms_topk=[600,600]", "model.proposal_generator.post_nms_topk=[600,600]"]
    none = ["model.roi_heads.box_predictor.test_score_thresh=1.0"]
    batch = list(images([(96, 96), (96, 90)]))
    for overrides, count in ((many, 500), (none, 0)):
        predictors = [
            Predictor(described_config(each, overrides), each, score_threshold=0.0) for each in (folder, weights)
        ]
        found, expected = (each.predict(batch, batch_size=2) for each in predictors)
        assert [len(each) for each in (*found, *expected)] == [count] * 4
        if count:
            same_objects.assert_same(found, expected)  # in any order: some scores are equal but for rounding


def test_the_folder_describes_itself_as_the_checkpoint_does(exported):
    weights, folder = map(str, exported)
    assert len({path.stat().st_mode for path in exported[1].iterdir()}) == 1  # who may read one may read all
    assert read_description(folder) == read_description(weights)
    changed = described_config(folder, ["dataset.score_threshold=0.9"])
    assert Predictor(changed, folder).score_threshold == 0.9


def test_half_precision_is_half_the_size_and_another_model(exported, copied, tmp_path):
    weights, folder = exported
    export(weights, tmp_path / "half", "fp16")
    sizes = [(place / "body.bin").stat().st_size for place in (tmp_path / "half", folder)]
    assert 0.45 < sizes[0] / sizes[1] < 0.6
    whole, copy, half = (Predictor(place, score_threshold=0.3) for place in (folder, copied, tmp_path / "half"))
    found, expected = half.predict(next(images())), whole.predict(next(images()))
    assert abs(len(found) - len(expected)) <= 1 + len(expected) // 10
    assert predictor_fingerprint(whole) == predictor_fingerprint(copy) != predictor_fingerprint(half)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "model.json").unlink(), r"has no model\.json"),
        (lambda folder: (folder / "model.json").write_text("{"), r"model\.json is damaged"),
        (lambda folder: (folder / "body.bin").unlink(), r"body\.bin is missing"),
        (lambda folder: (folder / "body.bin").write_bytes(b"\0" * 99), r"body\.bin is not the file that was exported"),
        (lambda folder: change(folder, parts=[]), r"does not fit the config's model"),
        (lambda folder: change(folder, parts=[{"module": "a.b"}]), r"details\.parts"),
        (lambda folder: change(folder, description="no JSON"), r"details\.description"),
        (lambda folder: change_part(folder, module="nowhere"), r"has no module nowhere"),
        (lambda folder: change_part(folder, file="rest.safetensors"), r"details\.parts"),
    ],
)
def test_damaged_folders_are_refused_by_name(copied, break_it, message):
    break_it(copied)
    with pytest.raises(UserError, match=message):
        Predictor(copied)


def change(folder, **details):
    content = json.loads((folder / "model.json").read_text())
    content["details"] |= details
    (folder / "model.json").write_text(json.dumps(content))


def change_part(folder, **fields):
    content = json.loads((folder / "model.json").read_text())
    change(folder, parts=[{**content["details"]["parts"][0], **fields}])


def test_a_graph_of_another_program_is_refused(copied, monkeypatch):
    from maskrcnn_plus import model_folder

    (copied / "body.xml").write_text("<net><layers/></net>")
    monkeypatch.setattr(model_folder, "_measure", lambda path: model_folder.ModelFile("", 0))
    change_files(copied)
    with pytest.raises(UserError, match=r"body\.xml cannot be run by OpenVINO"):
        Predictor(copied)


def change_files(folder):
    content = json.loads((folder / "model.json").read_text())
    content["files"] = {name: {"sha256": "", "bytes": 0} for name in content["files"]}
    (folder / "model.json").write_text(json.dumps(content))


def test_what_an_exported_model_cannot_do_is_said(exported):
    folder = str(exported[1])
    with pytest.raises(ValueError, match="runs on the CPU"):
        Predictor(folder, device="cuda")
    channels = ["model.roi_heads.box_predictor.input_shape.channels=64", "model.roi_heads.box_head.fc_dims=[64]"]
    with pytest.raises(UserError, match="does not fit the config's model"):
        Predictor(described_config(folder, channels), folder)
    with pytest.raises(ValueError, match="precision"):
        Predictor(folder, precision="int4")


def swin_config():
    cfg = coco_config("mask_rcnn_swin_t_fpn")
    cfg.model.backbone.bottom_up.options = {"depths": [1, 1, 2, 1], "embed_dim": 16, "num_heads": [1, 2, 2, 2]}
    return cfg


def convnext_config():
    cfg = coco_config("mask_rcnn_convnext_t_fpn")
    cfg.model.backbone.bottom_up.options = {"depths": [1, 1, 2, 1], "dims": [16, 16, 32, 32]}
    return cfg


@pytest.mark.parametrize("make_config", [swin_config, convnext_config])
def test_transformers_and_their_like_with_80_classes(make_config, tmp_path):
    cfg = make_config()
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=64, max_size=200)
    weights = save_checkpoint(tmp_path / "model.pth", cfg)
    assert not export(weights, tmp_path / "exported").staying
    original, exported = Predictor(weights, score_threshold=0.0), Predictor(tmp_path / "exported", score_threshold=0.0)
    found, expected = ([model.predict(image) for image in images()] for model in (exported, original))
    same_objects.assert_same(found, expected)
    assert len({k for each in expected for k in each.pred_classes.tolist()}) > 10


def test_a_plain_vit_is_refused_by_name(tmp_path):
    cfg = coco_config("mask_rcnn_vitb_simple_pyramid")
    cfg.model.backbone.square_pad = 0
    net = {"name": "vit_tiny_patch16_224", "window_size": 3, "global_blocks": [1]}
    cfg.model.backbone.net.update(**net, options={"depth": 2, "embed_dim": 32, "num_heads": 2})
    cfg.model.proposal_generator.head.conv_dims = [-1]
    cfg.model.roi_heads.box_head.conv_dims = [16]
    cfg.model.pixel_mean = cfg.model.pixel_std = [100.0] * 3
    predictor = Predictor(cfg, "random", device="cpu", optimize=False)
    with pytest.raises(UserError, match=r"model\.backbone\.net \(PlainViT\) cannot be exported"):
        HybridModel(predictor, {})
    with pytest.raises(UserError, match=r"model\.backbone\.net \(PlainViT\) cannot be exported"):
        export_whole(predictor, tmp_path)


class Odd(torch.nn.Module):
    """Its trace does not hold for images of other sizes."""

    def forward(self, x):
        return {"p2": x * float(x.shape[-1])}


def test_a_network_whose_trace_does_not_hold_is_refused_by_name():
    odd = Odd()
    part = ExportedPart("backbone", "body", "body.xml", outputs=("p2",))
    candidate = Candidate(part, odd, _BodyNetwork(odd, ("p2",), None, ()), odd)
    with pytest.raises(
        UserError, match=r"backbone \(Odd\) cannot be exported to OpenVINO: for an input of \[1, 3, 8, 9\]"
    ):
        convert(candidate, [[torch.ones(1, 3, 8, side)] for side in (8, 9)])
    odd = torch.nn.Conv2d(4, 4, 1)
    candidate = Candidate(part, odd, _BodyNetwork(odd, ("p2",), None, ()), odd)
    with pytest.raises(UserError, match=r"backbone \(Conv2d\) cannot be exported to OpenVINO: .*to have 4 channels"):
        convert(candidate, [[torch.ones(1, 3, 8, 8)]])
