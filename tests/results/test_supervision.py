"""Results in supervision's annotators, filters, tracking tools, metrics and exporters, compact masks as dense ones."""

import json

import cv2
import numpy as np
import pytest
import supervision as sv
import torch
from detectron2.structures import Boxes, Instances
from supervision.metrics import MeanAveragePrecision, MetricTarget

from maskrcnn_plus.masks.rle_masks import RLEMasks, encode_masks
from maskrcnn_plus.results.supervision import to_supervision

HEIGHT, WIDTH = 90, 130
NAMES = ["round", "long"]


def found(count=7, height=HEIGHT, width=WIDTH, seed=0):
    """Ellipses whose predicted boxes are too small, so that masks reach beyond them; the last mask is empty."""
    random = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=random) * torch.tensor([width, height])
    radius = 6 + 14 * torch.rand(count, 2, generator=random)
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    masks = ((x - centre[:, :1, None]) / radius[:, :1, None]) ** 2 + (
        (y - centre[:, 1:, None]) / radius[:, 1:, None]
    ) ** 2
    masks = masks < 1  # [N, H, W]
    masks[-1:] = False
    return Instances(
        (height, width),
        pred_boxes=Boxes(torch.cat([centre - 0.8 * radius, centre + 0.8 * radius], dim=1)),
        scores=torch.linspace(0.9, 0.3, count),
        pred_classes=torch.arange(count) % 2,
        pred_masks_rle=RLEMasks.from_dense(masks),
    )


def canvas(height=HEIGHT, width=WIDTH):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (700, 900)])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_fields_and_masks_are_those_of_the_instances(count, size):
    instances = found(count, *size)
    compact, dense = (to_supervision(instances, NAMES, dense=flag) for flag in (False, True))
    masks = instances.pred_masks_rle.to_dense().numpy()
    assert isinstance(compact.mask, sv.CompactMask)
    assert isinstance(dense.mask, np.ndarray)
    assert (dense.mask.dtype, dense.mask.shape) == (bool, (count, *size))
    assert np.array_equal(dense.mask, masks)
    assert np.array_equal(compact.mask.to_dense(), masks)  # what lies outside the predicted boxes included
    for detections in (compact, dense):
        assert len(detections) == count
        assert np.array_equal(detections.xyxy, instances.pred_boxes.tensor.numpy())
        assert np.array_equal(detections.confidence, instances.scores.numpy())
        assert detections.class_id.tolist() == instances.pred_classes.tolist()
        assert detections["class_name"].tolist() == [NAMES[k % 2] for k in range(count)]
        assert np.array_equal(detections.area, masks.sum((1, 2)))


def test_class_names_and_masks_may_be_missing():
    instances = found()
    assert "class_name" not in to_supervision(instances).data
    assert to_supervision(instances, ["round"])["class_name"].tolist()[:2] == ["round", "class 1"]
    dense = Instances((HEIGHT, WIDTH), **{**instances.get_fields(), "pred_masks": instances.pred_masks_rle.to_dense()})
    dense.remove("pred_masks_rle")
    assert to_supervision(dense).mask == to_supervision(encode_masks(dense)).mask
    instances.remove("pred_masks_rle")
    assert to_supervision(instances).mask is None
    instances.pred_masks_rle = [{"size": [HEIGHT, WIDTH], "counts": [5]}] * len(instances)
    with pytest.raises(ValueError, match="RLE 0"):
        to_supervision(instances)


def test_compact_masks_take_little_memory():
    height, width, count = 32_000, 30_000, 30
    rles = [{"size": [height, width], "counts": [height * k, 500, height * (width - k) - 500]} for k in range(count)]
    fields = {**found(count).get_fields(), "pred_masks_rle": RLEMasks(rles, (height, width))}
    detections = to_supervision(Instances((height, width), **fields))  # dense: 29 GB
    assert detections.area.tolist() == [500] * count
    huge = Instances(
        (40_000, 10), **{**found(1).get_fields(), "pred_masks_rle": RLEMasks.from_dense(np.ones((1, 40_000, 10), bool))}
    )
    with pytest.raises(ValueError, match="32768"):
        to_supervision(huge)
    assert to_supervision(huge, dense=True).area.tolist() == [400_000]


@pytest.mark.parametrize(
    "annotator",
    [
        sv.MaskAnnotator(),
        sv.PolygonAnnotator(),
        sv.HaloAnnotator(),
        sv.BackgroundOverlayAnnotator(),
        sv.BoxAnnotator(),
        sv.LabelAnnotator(),
        sv.EllipseAnnotator(),
    ],
    ids=lambda annotator: type(annotator).__name__,
)
def test_annotators_draw_compact_masks_as_dense_ones(annotator):
    instances = found()
    drawn = [annotator.annotate(canvas(), to_supervision(instances, NAMES, dense=flag)) for flag in (False, True)]
    assert np.array_equal(*drawn)
    assert not np.array_equal(drawn[0], canvas())
    assert np.array_equal(annotator.annotate(canvas(), to_supervision(found(0))).shape, canvas().shape)


def test_filters_merging_and_suppression_treat_compact_masks_as_dense_ones():
    instances = found()
    twice = Instances.cat([instances, found(seed=0)])
    results = []
    for flag in (False, True):
        detections = to_supervision(twice, NAMES, dense=flag)
        kept = detections.with_nms(0.5)
        chosen = kept[(kept.confidence > 0.5) & (kept["class_name"] == "round")]
        merged = sv.Detections.merge([chosen, to_supervision(instances[:1], NAMES, dense=flag)])
        results.append((len(kept), merged.confidence.tolist(), np.asarray(merged.mask)))
    assert results[0][:2] == results[1][:2]
    assert results[0][0] < len(twice)
    assert np.array_equal(results[0][2], results[1][2])
    assert results[0][2].any()


def test_tracking_tools_follow_an_object_over_frames():
    start, end = sv.Point(60, 0), sv.Point(60, HEIGHT)
    line, trace = sv.LineZone(start, end, triggering_anchors=[sv.Position.CENTER]), sv.TraceAnnotator()
    smoother = sv.DetectionsSmoother()
    for step in range(6):
        moving = Instances(
            (HEIGHT, WIDTH),
            pred_boxes=Boxes(torch.tensor([[20.0 + 15 * step, 30, 30 + 15 * step, 40]])),
            scores=torch.tensor([0.9]),
            pred_classes=torch.tensor([0]),
            pred_masks_rle=found(2).pred_masks_rle[:1],
        )
        detections = to_supervision(moving, NAMES)
        detections.tracker_id = np.array([4])
        line.trigger(detections)
        image = trace.annotate(canvas(), detections)
        smoothed = smoother.update_with_detections(detections)
    assert line.in_count + line.out_count == 1
    assert not np.array_equal(image, canvas())
    assert smoothed.tracker_id.tolist() == [4]


def test_metrics_of_masks_agree_for_compact_and_dense():
    truth, guess = found(), found()
    guess.pred_masks_rle = RLEMasks.from_dense(guess.pred_masks_rle.to_dense().roll(2, 2))
    figures = []
    for flag in (False, True):
        metric = MeanAveragePrecision(metric_target=MetricTarget.MASKS)
        metric.update(to_supervision(guess[:6], NAMES, dense=flag), to_supervision(truth[:6], NAMES, dense=flag))
        figures.append(metric.compute().map50_95)
    assert figures[0] == figures[1]
    assert 0 < figures[0] < 1


def test_exporters_write_compact_masks_as_dense_ones(tmp_path):
    instances = found()[:6]  # supervision exports no empty mask
    cv2.imwrite(str(tmp_path / "a.png"), canvas())
    written = []
    for flag in (False, True):
        detections = to_supervision(instances, NAMES, dense=flag)
        dataset = sv.DetectionDataset(NAMES, [str(tmp_path / "a.png")], {str(tmp_path / "a.png"): detections})
        dataset.as_coco(annotations_path=str(tmp_path / f"{flag}.json"))
        written.append(json.loads((tmp_path / f"{flag}.json").read_text())["annotations"])
        with sv.JSONSink(str(tmp_path / "sink.json")) as sink:
            sink.append(detections, {"frame": 3})
        rows = json.loads((tmp_path / "sink.json").read_text())
        assert [row["class_name"] for row in rows] == [NAMES[k % 2] for k in range(6)]
    assert written[0] == written[1]
    assert len(written[0]) == 6
    assert all(annotation["segmentation"] for annotation in written[0])
