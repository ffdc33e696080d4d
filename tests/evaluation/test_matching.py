"""The matching metric against brute force over all matchings, hand-computed scenes and the edge cases."""

import itertools
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import BoxMode, Instances

from maskrcnn_plus.evaluation import MatchingEvaluator
from maskrcnn_plus.evaluation.matching import (
    DEFAULT_THRESHOLDS,
    count_matches,
    match_counts,
    matched_average_precision,
    metric_names,
)
from maskrcnn_plus.masks.label_map import masks_to_rles

HEIGHT, WIDTH = 24, 32


def box_mask(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def stack(*masks):
    return np.stack(masks) if masks else np.zeros((0, HEIGHT, WIDTH), dtype=bool)


def dataset_entry(image_id, masks, classes=None, crowd=None):
    annotations = [
        {
            "bbox": [0.0, 0.0, 1.0, 1.0],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0 if classes is None else classes[index],
            "iscrowd": 0 if crowd is None else crowd[index],
            "segmentation": rle,
        }
        for index, rle in enumerate(masks_to_rles(masks))
    ]
    fields = {"file_name": f"{image_id}.png", "image_id": image_id, "height": HEIGHT, "width": WIDTH}
    return {**fields, "annotations": annotations}


def prediction(masks, scores=None, classes=None, as_rle=False):
    instances = Instances((HEIGHT, WIDTH))
    instances.scores = torch.ones(len(masks)) if scores is None else torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.zeros(len(masks), dtype=torch.long) if classes is None else torch.tensor(classes)
    if as_rle:
        instances.pred_masks_rle = masks_to_rles(masks)
    else:
        instances.pred_masks = torch.from_numpy(masks)
    return {"instances": instances}


@pytest.fixture
def register(request):
    names = []

    def _register(entries):
        names.append(f"matching_{request.node.name}_{len(names)}")
        DatasetCatalog.register(names[-1], lambda: entries)
        return names[-1]

    yield _register
    for name in names:
        DatasetCatalog.remove(name)


def evaluate(name, entries, outputs, **options):
    evaluator = MatchingEvaluator(name, **options)
    evaluator.reset()
    for entry, output in zip(entries, outputs, strict=True):
        evaluator.process([{"image_id": entry["image_id"]}], [output])
    return evaluator.evaluate()["matching"]


def brute_force_counts(ious, threshold, ignorable):
    """Try every one-to-one matching: the most pairs, then the fewest false positives."""
    num_detections, num_objects = ious.shape
    slots = list(range(num_objects)) + [None] * num_detections
    best = None
    for assignment in set(itertools.permutations(slots, num_detections)):
        hits = [o is not None and ious[d, o] >= threshold for d, o in enumerate(assignment)]
        false_positives = sum(not hit and not ignorable[d] for d, hit in enumerate(hits))
        result = (sum(hits), false_positives, num_objects - sum(hits))
        if best is None or (-result[0], result[1]) < (-best[0], best[1]):
            best = result
    return list(best)


def test_match_counts_equals_brute_force():
    rng = np.random.default_rng(0)
    thresholds = (0.1, 0.3, 0.5, 0.7)
    for _ in range(40):
        num_detections, num_objects = rng.integers(0, 4), rng.integers(0, 5)
        ious = rng.random((num_detections, num_objects))
        ignorable = rng.random(num_detections) < 0.4
        expected = [brute_force_counts(ious, threshold, ignorable) for threshold in thresholds]
        assert match_counts(ious, thresholds, ignorable).tolist() == expected


def test_greedy_matching_would_lose_a_pair():
    """The best pair first (0.9) leaves the second detection without its only object."""
    assert match_counts(np.array([[0.9, 0.6], [0.7, 0.1]]), (0.5,)).tolist() == [[2, 0, 0]]


def test_count_matches_on_label_maps_equals_a_dense_loop():
    rng = np.random.default_rng(1)
    for _ in range(15):
        truth_map = rng.integers(0, 5, (HEIGHT // 4, WIDTH // 4)).repeat(4, 0).repeat(4, 1)
        found_map = np.where(rng.random(truth_map.shape) < 0.8, truth_map, rng.integers(0, 5, truth_map.shape))
        truth, found = (stack(*(label_map == k for k in range(1, 5))) for label_map in (truth_map, found_map))
        truth_classes, found_classes = rng.integers(0, 2, 4).tolist(), rng.integers(0, 2, 4).tolist()
        ious = np.zeros((4, 4))
        for d, g in itertools.product(range(4), range(4)):
            if truth_classes[g] == found_classes[d]:
                ious[d, g] = (truth[g] & found[d]).sum() / max((truth[g] | found[d]).sum(), 1)
        counts = count_matches(
            masks_to_rles(found), found_classes, masks_to_rles(truth), truth_classes, [False] * 4, DEFAULT_THRESHOLDS
        )
        expected = [brute_force_counts(ious, t, np.zeros(4, dtype=bool)) for t in DEFAULT_THRESHOLDS]
        assert counts.tolist() == expected


@pytest.mark.parametrize("as_rle", [False, True])
def test_hand_computed_example(register, as_rle):
    """Image a: IoUs 1 and 8 * 6 / (8 * 10) = 0.6, one FP. Image b: one object missed, nothing predicted."""
    entries = [
        dataset_entry("a", stack(box_mask(0, 0, 8, 8), box_mask(10, 0, 18, 10))),
        dataset_entry("b", stack(box_mask(4, 4, 9, 9))),
    ]
    found = stack(box_mask(0, 0, 8, 8), box_mask(10, 0, 18, 6), box_mask(20, 14, 30, 20))
    outputs = [prediction(found, as_rle=as_rle), prediction(stack(), as_rle=as_rle)]
    result = evaluate(register(entries), entries, outputs)
    # Pooled at 0.50, 0.55, 0.60: TP 2, FP 1, FN 1; from 0.65 on: TP 1, FP 2, FN 2.
    for percent in (50, 55, 60):
        assert result[f"AP{percent}"] == pytest.approx(2 / 4)
        assert result[f"image_AP{percent}"] == pytest.approx((2 / 3 + 0) / 2)
    for percent in (65, 70, 75, 80, 85, 90):
        assert result[f"AP{percent}"] == pytest.approx(1 / 5)
        assert result[f"image_AP{percent}"] == pytest.approx((1 / 4 + 0) / 2)
    assert result["mAP"] == pytest.approx((3 * 2 / 4 + 6 / 5) / 9)
    assert result["image_mAP"] == pytest.approx((3 * 1 / 3 + 6 / 8) / 9)
    assert (result["precision50"], result["recall50"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert result["F1_50"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        (stack(box_mask(1, 1, 6, 9), box_mask(6, 1, 12, 9)), stack(box_mask(6, 1, 12, 9), box_mask(1, 1, 6, 9)), 1.0),
        (stack(), stack(), 1.0),
        (stack(), stack(box_mask(0, 0, 4, 4)), 0.0),
        (stack(box_mask(0, 0, 4, 4)), stack(), 0.0),
        (stack(box_mask(0, 0, 4, 4)), stack(box_mask(8, 8, 12, 12)), 0.0),
    ],
    ids=["perfect", "empty", "only_fp", "only_fn", "fp_and_fn"],
)
def test_all_figures_are_the_same_in_the_extreme_cases(register, truth, found, expected):
    entries = [dataset_entry(1, truth)]
    result = evaluate(register(entries), entries, [prediction(found)])
    assert len(result) == 2 * (9 + 1) + 3
    assert set(result.values()) == {expected}


def test_an_empty_image_counts_one_in_the_image_average_only(register):
    entries = [dataset_entry(1, stack()), dataset_entry(2, stack(box_mask(0, 0, 4, 4)))]
    result = evaluate(register(entries), entries, [prediction(stack())] * 2)
    assert (result["AP50"], result["image_AP50"]) == (0.0, 0.5)


def test_a_match_needs_the_same_class(register):
    entries = [dataset_entry(1, stack(box_mask(0, 0, 4, 4), box_mask(8, 0, 12, 4)), classes=[0, 1])]
    found = stack(box_mask(0, 0, 4, 4), box_mask(8, 0, 12, 4))
    name = register(entries)
    assert evaluate(name, entries, [prediction(found, classes=[0, 1])])["AP50"] == 1.0
    assert evaluate(name, entries, [prediction(found, classes=[0, 0])])["AP50"] == pytest.approx(1 / 3)


def test_detections_in_a_crowd_are_neither_hits_nor_errors(register):
    """Of three detections in the crowd's neighbourhood 100 %, 50 % and 40 % of the area lie inside."""
    crowd = box_mask(16, 0, 32, 24)
    entries = [dataset_entry(1, stack(box_mask(0, 0, 4, 4), crowd), crowd=[0, 1])]
    hit, inside, half = box_mask(0, 0, 4, 4), box_mask(20, 2, 30, 6), box_mask(11, 8, 21, 10)
    mostly_outside = box_mask(10, 12, 20, 14)
    name = register(entries)
    assert evaluate(name, entries, [prediction(stack(hit, inside, half))])["AP50"] == 1.0
    assert evaluate(name, entries, [prediction(stack(hit, mostly_outside))])["AP50"] == 0.5
    assert evaluate(name, entries, [prediction(stack(hit, inside), classes=[0, 1])])["AP50"] == 0.5
    only_crowd = [dataset_entry(1, stack(crowd), crowd=[1])]
    assert evaluate(register(only_crowd), only_crowd, [prediction(stack(inside))])["image_AP50"] == 1.0
    assert evaluate(register(only_crowd), only_crowd, [prediction(stack())])["AP50"] == 1.0


def test_two_crowds_count_together():
    """A detection half in one and half in another crowd region lies in crowd regions altogether."""
    crowds = masks_to_rles(stack(box_mask(0, 0, 10, 3), box_mask(0, 7, 10, 10)))
    found = masks_to_rles(stack(box_mask(0, 0, 10, 10)))
    assert count_matches(found, [0], crowds, [0, 0], [True, True], (0.5,)).tolist() == [[0, 0, 0]]
    assert count_matches(found, [0], crowds[:1], [0], [True], (0.5,)).tolist() == [[0, 1, 0]]


def test_score_threshold_keeps_scores_from_it_on(register):
    entries = [dataset_entry(1, stack(box_mask(0, 0, 4, 4)))]
    output = prediction(stack(box_mask(0, 0, 4, 4), box_mask(8, 8, 12, 12)), scores=[0.5, 0.49])
    name = register(entries)
    assert evaluate(name, entries, [output])["AP50"] == 1.0
    assert evaluate(name, entries, [output], score_threshold=0.25)["AP50"] == 0.5
    assert evaluate(name, entries, [output], score_threshold=0.51)["AP50"] == 0.0


@pytest.mark.parametrize("as_rle", [False, True])
def test_overlaps_go_to_the_higher_score_and_covered_detections_go(register, as_rle):
    truth = stack(box_mask(0, 0, 8, 8), box_mask(8, 0, 16, 8))
    entries = [dataset_entry(1, truth)]
    # The second reaches 3 columns into the first (IoU 64 / 88 -> 1 once resolved); the third is covered entirely.
    found = stack(box_mask(0, 0, 8, 8), box_mask(5, 0, 16, 8), box_mask(1, 1, 7, 7))
    output = prediction(found, scores=[0.9, 0.8, 0.7], as_rle=as_rle)
    name = register(entries)
    assert evaluate(name, entries, [output])["AP90"] == 1.0
    unresolved = evaluate(name, entries, [output], resolve_overlaps=False)
    assert (unresolved["AP70"], unresolved["AP75"]) == (pytest.approx(2 / 3), pytest.approx(1 / 4))


def test_results_go_through_detectron2_and_onto_disk(register, tmp_path):
    entries = [dataset_entry(index, stack(box_mask(0, 0, 4 + index, 4))) for index in range(3)]

    def model(inputs):
        return [prediction(stack(box_mask(0, 0, 4, 4))) for _ in inputs]

    loader = [[{"image_id": index}] for index in range(3)]
    results = inference_on_dataset(
        model, loader, MatchingEvaluator(register(entries), output_dir=str(tmp_path / "out"))
    )
    print_csv_format(results)
    flat = flatten_results_dict(results)
    # IoUs 1, 4 / 5, 4 / 6
    assert [flat[f"matching/AP{p}"] for p in (65, 70, 85)] == [1.0, pytest.approx(2 / 4), pytest.approx(1 / 5)]
    assert all(type(value) is float for value in flat.values())
    assert not any("-" in key for key in results["matching"])
    written = json.loads((tmp_path / "out" / "matching_results.json").read_text())
    assert written["figures"] == results["matching"]
    assert written["images"][2] == {
        "image_id": 2,
        "TP": [1] * 4 + [0] * 5,
        "FP": [0] * 4 + [1] * 5,
        "FN": [0] * 4 + [1] * 5,
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["matching_results.json"]


def test_images_without_predictions_and_unknown_images_are_errors(register):
    entries = [dataset_entry(f"id{index}", stack()) for index in range(8)]
    evaluator = MatchingEvaluator(register(entries))
    evaluator.reset()
    evaluator.process([{"image_id": "id0"}], [prediction(stack())])
    with pytest.raises(ValueError, match=r"7 of 8 images.*'id1', 'id2', 'id3', 'id4', 'id5'\]"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match=r"'elsewhere'.*not in the data set"):
        evaluator.process([{"image_id": "elsewhere"}], [prediction(stack())])


@pytest.mark.parametrize("as_rle", [False, True])
def test_bad_predictions_name_the_image(register, as_rle):
    evaluator = MatchingEvaluator(register([dataset_entry("im", stack(box_mask(0, 0, 4, 4)))]))
    good = prediction(stack(box_mask(0, 0, 4, 4)), as_rle=as_rle)
    with pytest.raises(ValueError, match=r"im\.png.*NaN"):
        evaluator.process([{"image_id": "im"}], [prediction(stack(box_mask(0, 0, 4, 4)), scores=[float("nan")])])
    small = prediction(np.ones((1, HEIGHT // 2, WIDTH), dtype=bool), as_rle=as_rle)
    with pytest.raises(ValueError, match=r"im\.png.*\[12, 32\].*\[24, 32\]"):
        evaluator.process([{"image_id": "im"}], [small])
    good["instances"].remove("pred_masks_rle" if as_rle else "pred_masks")
    with pytest.raises(ValueError, match=r"im\.png.*no masks"):
        evaluator.process([{"image_id": "im"}], [good])
    with pytest.raises(ValueError, match=r"im\.png.*no instances"):
        evaluator.process([{"image_id": "im"}], [{}])


def test_reset_forgets(register):
    entries = [dataset_entry(1, stack(box_mask(0, 0, 4, 4)))]
    evaluator = MatchingEvaluator(register(entries))
    evaluator.process([{"image_id": 1}], [prediction(stack())])
    evaluator.reset()
    with pytest.raises(ValueError, match="1 of 1 images"):
        evaluator.evaluate()


@pytest.mark.parametrize("thresholds", [(), (0.0,), (1.01,), (0.5, 0.5), (0.505,), (float("nan"),)])
def test_bad_thresholds(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        metric_names(thresholds)


def test_other_thresholds_name_their_keys():
    figures = matched_average_precision(np.array([[[3, 1, 0], [2, 2, 1]]]), (0.3, 0.75))
    assert figures == {
        "AP30": 3 / 4,
        "AP75": 2 / 5,
        "mAP": pytest.approx((3 / 4 + 2 / 5) / 2),
        "image_AP30": 3 / 4,
        "image_AP75": 2 / 5,
        "image_mAP": pytest.approx((3 / 4 + 2 / 5) / 2),
        "precision30": 3 / 4,
        "recall30": 1.0,
        "F1_30": 6 / 7,
    }
