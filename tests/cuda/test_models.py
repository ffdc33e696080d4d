"""Every shipped config on a GPU: losses, gradients and predictions are those of the CPU; training in half precision."""

import copy
import warnings

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from maskrcnn_plus.config import get_config, list_configs, skip_pretrained
from maskrcnn_plus.data import resolve_classes
from maskrcnn_plus.inference import optimize_for_inference
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.training.loop import Trainer

SIDE = 256


def batch(channels, classes, images=2):
    """Images of noise with squares that are brighter, and their annotations."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(images):
        image = torch.randint(0, 80, (channels, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        label_map, boxes = torch.zeros(SIDE, SIDE, dtype=torch.int32), []
        for index in range(9):
            y, x, side = 80 * (index // 3) + 9, 80 * (index % 3) + 5, 20 + 5 * index
            label_map[y : y + side, x : x + side] = index + 1
            image[:, y : y + side, x : x + side] += 120
            boxes.append([x, y, x + side, y + side])
        masks = LabelMapMasks(label_map, torch.arange(1, 10))
        fields = dict(gt_boxes=Boxes(torch.tensor(boxes).float()), gt_classes=torch.arange(9) % classes, gt_masks=masks)
        result.append({"image": image, "height": SIDE, "width": SIDE, "instances": Instances((SIDE, SIDE), **fields)})
    return result


def build_model(name, everything=False):
    """The model of a config with random weights; with `everything`, nothing is left to chance."""
    torch.manual_seed(0)
    config = get_config(name)
    skip_pretrained(config)
    resolve_classes(config, splits=())
    if everything:
        for part in (config.model.proposal_generator, config.model.roi_heads):
            part.batch_size_per_image = 10**6
    model = instantiate(config.model)
    for module in model.modules() if everything else ():
        for probability in ("drop_prob", "drop_path_rate", "p"):  # stochastic depth and dropout
            if isinstance(getattr(module, probability, None), float):
                setattr(module, probability, 0.0)
    return model, batch(len(model.pixel_mean), model.roi_heads.num_classes)


def losses_and_gradients(model, examples):
    torch.manual_seed(0)
    with EventStorage():
        losses = model.train()(copy.deepcopy(examples))
    model.zero_grad()
    sum(losses.values()).backward()
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    return {name: loss.item() for name, loss in losses.items()}, torch.stack(norms).norm().item()


@pytest.mark.parametrize("name", list_configs())
def test_a_training_step_and_a_prediction_are_those_of_the_cpu(name):
    """Float32 on both. The order of sums differs: of proposals with nearly equal scores another one may be chosen."""
    model, examples = build_model(name, everything=True)
    expected, expected_norm = losses_and_gradients(model, examples)
    found, norm = losses_and_gradients(model.cuda(), examples)
    random_points = "point_rend" in name  # PointRend draws its points on the device
    for loss in expected:
        relative, absolute = (2e-3, 1e-4) if loss.startswith("loss_rpn") else (2e-2, 5e-3)
        if random_points and "mask" in loss:
            relative = 0.2
        assert found[loss] == pytest.approx(expected[loss], rel=relative, abs=absolute), (loss, found, expected)
    assert norm == pytest.approx(expected_norm, rel=0.2 if random_points else 5e-2)

    model.eval().cpu()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (on_cpu,) = model(examples[:1])
        optimize_for_inference(model.cuda())
        (on_gpu,) = model(examples[:1])
    found, expected = on_gpu["instances"].to("cpu"), on_cpu["instances"]
    assert len(found) == pytest.approx(len(expected), abs=max(2, len(expected) // 50))
    both = min(len(found), len(expected))
    if both:
        difference = found.scores[:both] - expected.scores[:both]
        assert difference.abs().max() < 1e-3


@pytest.mark.parametrize("amp", [None, "float16", "bfloat16"])
def test_training_in_each_precision_lowers_the_loss(amp):
    model, examples = build_model("nuclei/mask_rcnn_lite0_fpn")
    model = model.cuda().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    trainer = Trainer(model, [copy.deepcopy(examples) for _ in range(60)], optimizer, amp_dtype=amp)
    totals = []
    with EventStorage() as trainer.storage:
        for trainer.iter in range(40):
            trainer.run_step()
            totals.append(trainer.storage.latest()["total_loss"][0])
            trainer.storage.step()
    assert all(map(torch.isfinite, torch.tensor(totals)))
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])


def waits(step):
    """How often a call waits for the GPU."""
    step()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


def test_a_training_step_waits_less_often_than_one_of_detectron2s_parts():
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.modeling.proposal_generator import RPN

    counts = []
    for stock in (False, True):
        config = get_config("nuclei/mask_rcnn_lite0_fpn")
        skip_pretrained(config)
        resolve_classes(config, splits=())
        if stock:
            config.model.proposal_generator._target_ = RPN
            for name in ("box_pooler", "mask_pooler"):
                config.model.roi_heads[name]._target_ = ROIPooler
                config.model.roi_heads[name].pooler_type = "ROIAlignV2"
        torch.manual_seed(0)
        model = instantiate(config.model).cuda().train()
        examples = batch(3, 1)
        for example in examples:
            example["image"], example["instances"] = example["image"].cuda(), example["instances"].to("cuda")

        def step(model=model, examples=examples):
            with EventStorage():
                sum(model(examples).values()).backward()

        counts.append(waits(step))
    ours, theirs = counts
    assert ours < theirs
