"""Average recall of proposals against Detectron2's, a loop over the definition and hand-computed scenes."""

import functools
import itertools

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.layers import ShapeSpec
from detectron2.modeling import ProposalNetwork
from detectron2.modeling.backbone import Backbone
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from maskrcnn_plus.config import detectron2_config
from maskrcnn_plus.evaluation.proposals import ProposalRecallEvaluator, count_found, coverage, predict_proposals
from maskrcnn_plus.mask_rcnn import MaskRCNNPlus

SIZE = 256
KEYS = [f"AR{area}@{limit}" for limit in (100, 300, 1000) for area in ("", "s", "m", "l")]


def entry(image_id, boxes, crowd=(), **extra):
    """A dataset dict of objects with boxes (xyxy) and no masks."""
    annotations = [
        {"bbox": [*map(float, box)], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": int(index in crowd)}
        for index, box in enumerate(boxes)
    ]
    fields = {"file_name": f"{image_id}.png", "image_id": image_id, "height": SIZE, "width": SIZE}
    return {**fields, "annotations": annotations, **extra}


def proposed(boxes, logits=None):
    instances = Instances((SIZE, SIZE), proposal_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)))
    instances.objectness_logits = torch.arange(len(boxes), 0, -1.0) if logits is None else torch.tensor(logits)
    return {"proposals": instances}


def scene(num_objects, num_proposals, seed):
    """Objects of all sizes, and proposals around them in random order of their scores."""
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 130, (num_objects, 2)), rng.choice([8, 20, 60, 110], (num_objects, 1))
    boxes = np.hstack([corner, corner + side * rng.uniform(0.7, 1.1, (num_objects, 2))]).astype(np.float32)
    chosen = (
        boxes[rng.integers(0, num_objects, num_proposals)] if num_objects else rng.uniform(0, 99, (num_proposals, 4))
    )
    side = (chosen[:, 2:] - chosen[:, :2]).max(axis=1, initial=1, keepdims=True)
    noisy = chosen + side * rng.normal(0, 0.07, chosen.shape)
    return boxes.tolist(), noisy.tolist(), rng.permutation(num_proposals).astype(np.float32).tolist()


@pytest.fixture
def register(request):
    names = []

    def _register(entries):
        names.append(f"proposals_{request.node.name}_{len(names)}")
        DatasetCatalog.register(names[-1], lambda: entries)
        return names[-1]

    yield _register
    for name in names:
        DatasetCatalog.remove(name)


def evaluate(name, entries, outputs, **options):
    evaluator = ProposalRecallEvaluator(name, **options)
    evaluator.reset()
    for each, output in zip(entries, outputs, strict=True):
        evaluator.process([each], [output])
    return evaluator.evaluate()["box_proposals"]


class CocoApi:
    """The two methods of pycocotools' COCO that Detectron2's function calls."""

    def __init__(self, entries):
        self.entries = {each["image_id"]: each for each in entries}

    def getAnnIds(self, imgIds):
        return imgIds

    def loadAnns(self, image_id):
        annotations = []
        for each in self.entries[image_id]["annotations"]:
            x0, y0, x1, y1 = each["bbox"]
            box = [x0, y0, x1 - x0, y1 - y0]
            annotations.append({"bbox": box, "area": box[2] * box[3], "iscrowd": each["iscrowd"]})
        return annotations


@pytest.mark.parametrize("seed", range(3))
def test_equals_detectron2(register, seed):
    entries, outputs = [], []
    for image_id, (objects, proposals) in enumerate([(40, 700), (1, 5), (0, 50), (90, 150), (25, 1200)]):
        boxes, found, logits = scene(objects, proposals, seed=10 * seed + image_id)
        entries.append(entry(image_id, boxes, crowd=range(objects // 5)))
        outputs.append(proposed(found, logits))
    figures = evaluate(register(entries), entries, outputs)
    predictions = [{"image_id": e["image_id"], **output} for e, output in zip(entries, outputs, strict=True)]
    areas = ("all", "small", "medium", "large")
    expected = [
        100 * _evaluate_box_proposals(predictions, CocoApi(entries), area=area, limit=limit)["ar"].item()
        for limit, area in itertools.product((100, 300, 1000), areas)
    ]
    assert list(figures) == KEYS
    assert list(figures.values()) == pytest.approx(expected, abs=1e-4)
    assert 10 < figures["AR@100"] < figures["AR@300"] < 95
    assert len({round(figures[f"AR{area}@1000"]) for area in ("", "s", "m", "l")}) > 2


def naive_recall(ious, threshold):
    """Take the best pair, cross out its row and column, again and again."""
    ious, hits = ious.copy(), 0
    while ious.size and ious.max() >= threshold:
        row, column = np.unravel_index(ious.argmax(), ious.shape)
        ious[row, :] = ious[:, column] = -1
        hits += 1
    return hits


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (4, 0), (1, 1), (3, 9), (60, 25)])
def test_counts_equal_a_loop_over_the_definition(shape):
    rng = np.random.default_rng(sum(shape))
    ious, areas = rng.uniform(0, 1, shape), rng.choice([1.0, 1024, 1025, 9216, 9217, 1e5], shape[1])
    found, objects = count_found(ious, areas, (2, 20))
    masks = [areas > 0, areas <= 1024, (areas >= 1024) & (areas <= 9216), areas >= 9216]
    assert objects.tolist() == [mask.sum() for mask in masks]
    for row, mask in enumerate(masks):
        for column, limit in enumerate((2, 20)):
            expected = [naive_recall(ious[:limit, mask], t) for t in np.linspace(0.5, 0.95, 10)]
            assert found[row, column].tolist() == expected


def test_one_proposal_covers_one_object():
    """Both objects are best covered by the first proposal; it goes to the one that it covers better."""
    assert coverage(np.array([[0.9, 0.8], [0.6, 0.55]]), 0.5).tolist() == [0.9, 0.55]
    assert coverage(np.array([[0.9, 0.8], [0.6, 0.45]]), 0.5).tolist() == [0.9, 0]
    assert coverage(np.array([[0.7, 0.7]]), 0.5).tolist() == [0.7, 0]


def test_hand_computed_scene(register):
    """IoUs 1 (10 thresholds of 10), 0.8 exactly at a threshold (7 of 10), 0.49 (none)."""
    entries = [entry("a", [[0, 0, 20, 10], [100, 0, 200, 100]]), entry("b", [[50, 50, 100, 100]])]
    outputs = [proposed([[0, 0, 20, 10], [100, 0, 180, 100]]), proposed([[50, 50, 74.5, 100]])]
    figures = evaluate(register(entries), entries, outputs, limits=(1, 100))
    assert list(figures) == [f"AR{area}@{limit}" for limit in (1, 100) for area in ("", "s", "m", "l")]
    assert figures["AR@100"] == pytest.approx(100 * (1 + 0.7) / 3)
    assert [figures[f"AR{area}@100"] for area in "sml"] == pytest.approx([100, 0, 70])
    assert figures["AR@1"] == pytest.approx(100 / 3)  # the second proposal of "a" is beyond the limit


def test_scores_decide_who_is_within_the_limit(register):
    entries = [entry(1, [[0, 0, 20, 20]])]
    boxes = [[90, 90, 99, 99], [0, 0, 20, 20]]
    name = register(entries)
    assert evaluate(name, entries, [proposed(boxes, [-3.0, 2.0])], limits=(1,))["AR@1"] == 100
    assert evaluate(name, entries, [proposed(boxes, [2.0, -3.0])], limits=(1,))["AR@1"] == 0


def test_objects_of_an_image_without_proposals_are_missed(register):
    entries = [entry(1, [[0, 0, 20, 20]]), entry(2, [[0, 0, 20, 20]])]
    figures = evaluate(register(entries), entries, [proposed([[0, 0, 20, 20]]), proposed([])])
    assert figures["AR@100"] == 50


def test_without_objects_there_is_no_recall(register):
    entries = [entry(1, []), entry(2, [[0, 0, 50, 50]], crowd=[0])]
    figures = evaluate(register(entries), entries, [proposed([[0, 0, 20, 20]]), proposed([[0, 0, 50, 50]])])
    assert list(figures) == KEYS
    assert np.isnan(list(figures.values())).all()


def test_sizes_are_those_of_the_masks(register):
    """A thin triangle in a box of 60 x 60 pixels is small; the box alone would be medium."""
    triangle = entry(1, [[0, 0, 60, 60]])
    triangle["annotations"][0]["segmentation"] = [[0, 0, 60, 50, 60, 60]]
    entries = [triangle]
    figures = evaluate(register(entries), entries, [proposed([[0, 0, 60, 60]])])
    assert figures["ARs@100"] == 100
    assert np.isnan(figures["ARm@100"])


def test_boxes_as_xywh(register):
    entries = [entry(1, [[10, 20, 30, 40]])]
    entries[0]["annotations"][0]["bbox_mode"] = BoxMode.XYWH_ABS
    assert evaluate(register(entries), entries, [proposed([[10, 20, 40, 60]])])["AR@100"] == 100


def test_one_pixel_objects_and_proposals_without_area(register):
    entries = [entry(1, [[5, 5, 6, 6], [7, 7, 7, 7]])]
    figures = evaluate(register(entries), entries, [proposed([[5, 5, 6, 6], [7, 7, 7, 7], [9, 9, 3, 3]])])
    assert figures["AR@100"] == 50


def test_bad_proposals_and_objects_name_the_image(register):
    entries = [entry("im", [[0, 0, 20, 20]])]
    evaluator = ProposalRecallEvaluator(register(entries))
    for boxes, logits in (([[0.0, 0, float("nan"), 5]], [1.0]), ([[0.0, 0, 5, 5]], [float("inf")])):
        with pytest.raises(ValueError, match=r"im\.png.*NaN or infinite"):
            evaluator.process(entries, [proposed(boxes, logits)])
    with pytest.raises(ValueError, match=r"im\.png.*no proposals.*predict_proposals"):
        evaluator.process(entries, [{"instances": Instances((SIZE, SIZE))}])
    scaled = {"proposals": Instances((128, 128), **proposed([[0, 0, 9, 9]])["proposals"].get_fields())}
    with pytest.raises(ValueError, match=r"im\.png.*\(128, 128\).*\(256, 256\)"):
        evaluator.process(entries, [scaled])
    with pytest.raises(ValueError, match=r"'other'.*not in the data set"):
        evaluator.process([{"image_id": "other"}], [proposed([])])
    with pytest.raises(ValueError, match="1 of 1 images"):
        evaluator.evaluate()
    for bbox in ([0, 0, 5], None, [0, 0, float("nan"), 5]):
        broken = entry("broken", [[0, 0, 5, 5]])
        broken["annotations"][0]["bbox"] = bbox
        with pytest.raises(ValueError, match=r"broken\.png.*box of"):
            ProposalRecallEvaluator(register([broken])).process([broken], [proposed([])])


@pytest.mark.parametrize("limits", [(), (0,), (100, 100)])
def test_bad_limits(register, limits):
    with pytest.raises(ValueError, match="limits must be different numbers"):
        ProposalRecallEvaluator(register([entry(1, [])]), limits=limits)


class Stem(Backbone):
    """Two maps of a random convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1)

    def forward(self, image):
        features = self.conv(image)
        return {"p2": features, "p3": nn.functional.avg_pool2d(features, 2)}

    def output_shape(self):
        return {"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=8, stride=8)}

    @property
    def size_divisibility(self):
        return 32


@pytest.fixture
def parts():
    torch.manual_seed(0)
    rpn = detectron2_config("common/models/mask_rcnn_fpn.py").model.proposal_generator
    rpn.in_features, rpn.head.in_channels, rpn.post_nms_topk = ["p2", "p3"], 8, (100, 70)
    rpn.anchor_generator.sizes, rpn.anchor_generator.strides = [[16], [32]], [4, 8]
    generator = instantiate(rpn)
    for parameter in generator.parameters():
        parameter.data.mul_(20)  # proposals that differ from the anchors
    return dict(backbone=Stem(), proposal_generator=generator, pixel_mean=[100.0] * 3, pixel_std=[50.0] * 3)


def images(scales=(1.0, 2.0)):
    """Inputs of different sizes, the second at twice the size of its original image."""
    generator = torch.Generator().manual_seed(1)
    sides = [(96, 128), (128, 100)]
    return [
        {"image": torch.rand(3, h, w, generator=generator) * 255, "height": round(h / s), "width": round(w / s)}
        for (h, w), s in zip(sides, scales, strict=True)
    ]


def test_predicted_proposals_of_a_detector_equal_those_of_a_proposal_network(parts):
    model = MaskRCNNPlus(**parts, roi_heads=nn.Identity()).eval()
    found, expected = predict_proposals(model, images()), ProposalNetwork(**parts).eval()(images())
    for mine, theirs, each in zip(found, expected, images(), strict=True):
        mine, theirs = mine["proposals"], theirs["proposals"]
        assert mine.image_size == theirs.image_size == (each["height"], each["width"])
        assert len(mine) == len(theirs) > 30
        assert torch.equal(mine.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
        assert torch.equal(mine.objectness_logits, theirs.objectness_logits)
        assert not mine.proposal_boxes.tensor.requires_grad
    assert found[1]["proposals"].proposal_boxes.tensor[:, 2].max() <= 50
    without_size = [{"image": each["image"]} for each in images()]
    assert [tuple(each["proposals"].image_size) for each in predict_proposals(model, without_size)] == [
        (96, 128),
        (128, 100),
    ]


def test_a_detector_goes_through_detectron2s_loop(parts, register):
    """Its own proposals as ground truth: those of twice the size are found at 1000 in original pixels, all of them."""
    model = MaskRCNNPlus(**parts, roi_heads=nn.Identity()).eval()
    loader, entries = [[dict(each, image_id=k)] for k, each in enumerate(images())], []
    for batch in loader:
        boxes = predict_proposals(model, batch)[0]["proposals"].proposal_boxes.tensor
        size = {key: batch[0][key] for key in ("height", "width")}
        entries.append(entry(batch[0]["image_id"], boxes.tolist(), **size))
    evaluator = ProposalRecallEvaluator(register(entries), limits=(10, 1000))
    results = inference_on_dataset(functools.partial(predict_proposals, model), loader, evaluator)
    print_csv_format(results)
    flat = flatten_results_dict(results)
    assert flat["box_proposals/AR@1000"] == 100
    assert 0 < flat["box_proposals/AR@10"] < 100
    assert all(type(value) is float for value in flat.values())


def test_models_that_cannot_give_proposals(parts):
    model = MaskRCNNPlus(**parts, roi_heads=nn.Identity())
    with pytest.raises(ValueError, match=r"model\.eval"):
        predict_proposals(model.train(), images())
    model = MaskRCNNPlus(**{**parts, "proposal_generator": None}, roi_heads=nn.Identity()).eval()
    with pytest.raises(ValueError, match="MaskRCNNPlus has no proposal generator"):
        predict_proposals(model, images())
