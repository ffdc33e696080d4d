"""A training step makes a GPU wait for the host no more often than one of Detectron2's own models.

No GPU is needed: counted are the calls that need a number from the device. Where the code looks at the device, it is
told that this is not a CPU.
"""

import collections

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn_plus.config import detectron2_config, get_config, skip_pretrained
from maskrcnn_plus.mask_heads import areas_in_boxes
from maskrcnn_plus.masks import chunks
from maskrcnn_plus.masks.bit_crops import IndexedBitMasks
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.training.hooks import WeightAveraging
from maskrcnn_plus.training.loop import Trainer

SYNCS = {
    "aten::_local_scalar_dense",  # item, int, float, bool
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::_unique2",
    "aten::equal",
    "torchvision::nms",  # the number of boxes that it keeps
    "maskrcnn_plus::batched_nms",
}


class CountSyncs(TorchDispatchMode):
    """Counts operators that return numbers, or tensors whose size depends on numbers, and conversions of tensors."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    @property
    def total(self):
        return sum(self.counts.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name in SYNCS:
            self.counts[name] += 1
        if name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self.counts[name] += 1
        if name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            scalar = name != "aten::index" and args[2].numel() == 1  # filled in place
            self.counts[name] += not scalar
        return function(*args, **(kwargs or {}))


@pytest.fixture
def count(monkeypatch):
    """Count the syncs of a call; of `tolist` and `numpy`, which stay out of sight of the operators, too."""

    def count(call):
        with CountSyncs() as counter, pytest.MonkeyPatch.context() as patch:
            for name in ("numpy", "tolist", "cpu"):
                original = getattr(torch.Tensor, name)

                def converted(self, *args, original=original, name=name, **kwargs):
                    counter.counts[f"Tensor.{name}"] += 1
                    return original(self, *args, **kwargs)

                patch.setattr(torch.Tensor, name, converted)
            call()
        return counter

    monkeypatch.setattr(chunks, "prefers_chunks", lambda device: True)
    return count


def label_masks(objects=6, side=128):
    label_map, boxes = torch.zeros(side, side, dtype=torch.int32), []
    for index in range(objects):
        y, x = 40 * (index // 3) + 5, 40 * (index % 3) + 3
        label_map[y : y + 22, x : x + 20 + index] = index + 1
        boxes.append([x, y, x + 20.0 + index, y + 22.0])
    return LabelMapMasks(label_map, torch.arange(1, objects + 1)), torch.tensor(boxes)


def batch(masks_of, images=2):
    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(images):
        masks, boxes = label_masks()
        fields = dict(gt_boxes=Boxes(boxes), gt_classes=torch.zeros(6).long(), gt_masks=masks_of(masks))
        image = torch.randint(0, 256, (3, 128, 128), generator=generator, dtype=torch.uint8)
        result.append({"image": image, "instances": Instances((128, 128), **fields)})
    return result


def step_syncs(count, model_config, masks_of):
    torch.manual_seed(0)
    model = instantiate(model_config).train()
    examples = batch(masks_of)

    def step():
        with EventStorage():
            sum(model(examples).values()).backward()

    return count(step)


@pytest.fixture(scope="module")
def stock():
    """What Detectron2's own Mask R-CNN takes, once it was counted."""
    return []


@pytest.mark.parametrize(
    "name",
    ["mask_rcnn_lite0_fpn", "variants/soft_targets", "variants/cascade_rpn", "variants/mask_scoring"],
)
def test_a_step_waits_no_more_often_than_detectron2s(count, stock, name):
    if not stock:
        model = detectron2_config("common/models/mask_rcnn_fpn.py").model
        stock.append(step_syncs(count, model, LabelMapMasks.to_bitmasks))
    config = get_config(f"nuclei/{name}")
    skip_pretrained(config)
    ours, (theirs,) = step_syncs(count, config.model, lambda masks: masks), stock
    assert theirs.total > 20
    assert ours.total <= theirs.total, (ours.counts, theirs.counts)


@pytest.mark.parametrize("masks_of", [lambda masks: masks, lambda masks: IndexedBitMasks(masks.to_bitmasks().tensor)])
def test_masks_are_cut_and_measured_without_waiting_and_with_the_same_result(count, masks_of, monkeypatch):
    torch.manual_seed(0)
    masks, boxes = label_masks()
    index = torch.randint(0, 6, (40,))
    masks, boxes = masks_of(masks)[index], boxes[index] + 6 * torch.randn(40, 4)
    boxes[:3] = torch.tensor([[5.0, 5, 5, 9], [-9, -9, 200, 200], [150, 5, 170, 20]])
    monkeypatch.setattr(chunks, "_CHUNK_NUMEL", 7 * 128 * 128)  # the last chunk is not full
    results = []
    counter = count(lambda: results.extend([masks.crop_and_resize(boxes, 28), areas_in_boxes(masks, boxes)]))
    assert counter.total == 0, counter.counts
    monkeypatch.setattr(chunks, "prefers_chunks", lambda device: False)
    assert torch.equal(results[0], masks.crop_and_resize(boxes, 28))
    assert torch.equal(results[1], areas_in_boxes(masks, boxes))
    assert results[0].shape == (40, 28, 28)
    assert masks[:0].crop_and_resize(boxes[:0], 28).shape == (0, 28, 28)


def test_masks_refuse_boxes_that_would_never_end(count):
    masks, boxes = label_masks()
    for value in (torch.nan, torch.inf, 1e18):
        boxes[2, 2] = value
        with pytest.raises(RuntimeError, match="Boxes must be finite and at most"):
            masks.crop_and_resize(boxes, 28)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, batch):
        output = self.layer(batch[0]["image"])
        return {"loss_a": output.sum(), "loss_b": output.square().sum()}


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_the_loop_reads_the_losses_once_and_the_norm_once(count, clip):
    torch.manual_seed(0)
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(model, [[{"image": torch.ones(3)}]] * 9, optimizer, clip_grad_norm=clip)
    with EventStorage() as trainer.storage:
        trainer.iter = 0
        counter = count(trainer.run_step)
        norm = trainer.storage.latest()["grad_norm"][0]
    assert counter.total == 2, counter.counts
    assert norm > 1e-2  # before clipping
    after = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert after == pytest.approx(clip or norm, rel=1e-4)


def test_the_average_counts_its_steps_on_the_cpu(count):
    """`AveragedModel` reads its own counter, which lives on the CPU; the copy on the weights' device is left alone."""
    model = Line()
    hook = WeightAveraging(model, 0.9)
    for _ in range(3):
        hook.after_step()
    counts = torch.tensor(0)
    seen = []
    hook.average.multi_avg_fn([torch.zeros(1)], [torch.ones(1)], counts)
    value = torch.zeros(1)
    hook.average.multi_avg_fn([value], [torch.ones(1)], torch.tensor(7, device="meta"))
    seen.append(value.item())
    assert seen == [pytest.approx(1 - 4 / 13)]  # (1 + n) / (10 + n) at n = 3
