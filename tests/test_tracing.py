"""What is traced with images of one size gives the results of the same modules, run as they are, at every size."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.export import TracingAdapter
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import ImageList
from torch import nn

from maskrcnn_plus.config import detectron2_config, get_config, skip_pretrained
from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.rpn import BatchedRPN, CascadeRPN, CascadeRPNHead, IoUAwareRPN, IoUAwareRPNHead, square_anchors

pytestmark = pytest.mark.filterwarnings("ignore")
STRIDES = (4, 8, 16)


def build_rpn(cls):
    torch.manual_seed(0)
    common = dict(
        in_features=["p2", "p3", "p4"],
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=32,
        positive_fraction=0.5,
        pre_nms_topk=(200, 100),
        post_nms_topk=(80, 50),
    )
    if cls is CascadeRPN:
        transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
        rpn = cls(
            head=CascadeRPNHead(4),
            anchor_generator=square_anchors(STRIDES),
            initial_box2box_transform=transform,
            **common,
        )
    else:
        head = detectron2_config("common/models/mask_rcnn_fpn.py").model.proposal_generator.head
        head.in_channels = 4
        head = IoUAwareRPNHead(in_channels=4, num_anchors=3) if cls is IoUAwareRPN else instantiate(head)
        anchors = DefaultAnchorGenerator(sizes=[[16], [32], [64]], aspect_ratios=[0.5, 1.0, 2.0], strides=list(STRIDES))
        rpn = cls(head=head, anchor_generator=anchors, **common)
    for parameter in rpn.parameters():
        parameter.data.mul_(20)  # proposals that reach the borders
    return rpn.eval()


class Proposals(nn.Module):
    """An RPN on images that their sizes come from, as in a whole model."""

    def __init__(self, rpn):
        super().__init__()
        self.rpn = rpn

    def forward(self, first, second):
        images = ImageList.from_tensors([first, second], 16)
        grey = images.tensor.mean(1, keepdim=True)
        maps = {
            name: torch.cat([grey, grey**2, 1 - grey, grey.sin()], 1)[:, :, ::stride, ::stride]
            for name, stride in zip(("p2", "p3", "p4"), STRIDES, strict=True)
        }
        proposals, _ = self.rpn(images, maps)
        return [each for p in proposals for each in (p.proposal_boxes.tensor, p.objectness_logits)]


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("cls", [BatchedRPN, CascadeRPN, IoUAwareRPN])
def test_proposals_of_a_trace_are_those_of_the_module_at_other_sizes(cls):
    module = Proposals(build_rpn(cls))
    torch.manual_seed(1)
    traced = torch.jit.trace(module, (torch.rand(3, 64, 48), torch.rand(3, 40, 64)), check_trace=False)
    for sizes in (((64, 48), (40, 64)), ((144, 160), (32, 100)), ((33, 20), (90, 51))):
        images = [torch.rand(3, *size) for size in sizes]
        expected, found = module(*images), traced(*images)
        assert 5 <= len(expected[0]) <= 50
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cls", [BatchedRPN, CascadeRPN, IoUAwareRPN])
def test_a_trace_of_detectron2s_tests(cls):
    """`ImageList` made by hand: its sizes are numbers, and part of the trace."""
    rpn = build_rpn(cls)
    torch.manual_seed(2)
    maps = {f"p{level + 2}": torch.rand(1, 4, 64 // stride, 48 // stride) for level, stride in enumerate(STRIDES)}

    def propose(model, image, features):
        return model(ImageList(image, [(60, 41)]), features)[0]

    adapter = TracingAdapter(rpn, (torch.rand(1, 3, 64, 48), maps), propose)
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    (expected,) = propose(rpn, *adapter.inputs)
    boxes = [each for each in traced(*adapter.flattened_inputs) if each.dim() == 2]
    torch.testing.assert_close(boxes[0], expected.proposal_boxes.tensor)


def build_model(name="demo/mask_rcnn_lite0_fpn", **options):
    torch.manual_seed(0)
    cfg = get_config(name)
    skip_pretrained(cfg)
    cfg.dataset.max_objects = 7
    cfg.model.proposal_generator.pre_nms_topk = (60, 60)
    cfg.model.proposal_generator.post_nms_topk = (30, 30)
    cfg.model.update(options)
    model = instantiate(cfg.model).eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    return model


@pytest.fixture(scope="module")
def model():
    return build_model()


def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in ((64, 96), (100, 70))]


def test_a_whole_model_before_its_postprocessing(model):
    """The way of Detectron2's `export_model.py`."""
    first, second = images()
    adapter = TracingAdapter(model, [{"image": first}], lambda m, x: m.inference(x, do_postprocess=False))
    traced = torch.jit.trace(adapter, (first,), check_trace=False)
    for image in (first, second):
        (found,) = adapter.outputs_schema(traced(image))
        with torch.no_grad():
            (expected,) = model.inference([{"image": image}], do_postprocess=False)
        assert len(expected) == 7
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        torch.testing.assert_close(found.pred_masks, expected.pred_masks)


def test_a_whole_model_with_dense_masks_for_any_size(model):
    first, second = images()
    adapter = TracingAdapter(model, [{"image": first}])
    traced = torch.jit.trace(adapter, (first,), check_trace=False)
    for image in (first, second):
        found = adapter.outputs_schema(traced(image))[0]["instances"]
        with torch.no_grad():
            expected = model([{"image": image}])[0]["instances"]
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        torch.testing.assert_close(found.scores, expected.scores)
        assert list(RLEMasks.from_dense(found.pred_masks)) == list(expected.pred_masks_rle)


@pytest.mark.parametrize(
    ("name", "value"), [("max_covered", 0.5), ("min_mask_area", 3), ("mask_pasting", "torchvision")]
)
def test_what_a_trace_cannot_hold_is_refused(model, name, value, monkeypatch):
    monkeypatch.setattr(model, name, value)
    image, _ = images()
    with pytest.raises(ValueError, match="A trace pastes masks"):
        torch.jit.trace(TracingAdapter(model, [{"image": image}]), (image,), check_trace=False)


def test_scripting_says_what_to_do_instead(model):
    for module in (model, model.roi_heads, model.proposal_generator, build_rpn(CascadeRPN), build_rpn(IoUAwareRPN)):
        if type(module).__module__.startswith("maskrcnn_plus."):
            with pytest.raises(NotImplementedError, match=f"cannot compile {type(module).__name__}.*Trace the model"):
                torch.jit.script(module)
    assert type(model).__module__.startswith("maskrcnn_plus.")
