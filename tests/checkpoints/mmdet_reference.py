"""Run MMDetection itself: random models written as its model zoo writes them, and what they make of images.

Runs in an environment with mmdet, mmcv (or mmcv-lite) and mmengine, on a job file; `test_mmdet_parity.py` calls it:

    python mmdet_reference.py JOB.json

The job: {"folder": where results go, "seed": number, "names": [config, ...], "runs": [{"name", "config", "options":
changes of the config, "scale": (long, short edge), "images": [file, ...]}, ...]}. Results: `names.pt` holds name ->
shape of every tensor of each config; `conventions.pt` anchors, boxes and resized images; `NAME.pth` the weights and
`NAME.out.pt` the outputs of each run. Exits with 3 where mmdet cannot be imported.

MMCV's Python code calls two compiled operators in inference, `nms` and `roi_align_forward`: torchvision's take their
place.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn


class Operators(types.ModuleType):
    """Stand-in for `mmcv._ext`: non-maximum suppression and RoIAlign; any other operator raises when called."""

    def __getattr__(self, name: str) -> Callable:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise RuntimeError(f"operator {name} has no stand-in")

        return missing

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        assert offset == 0
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    @staticmethod
    def roi_align_forward(
        features,
        rois,
        output,
        argmax_y,
        argmax_x,
        *,
        aligned_height,
        aligned_width,
        spatial_scale,
        sampling_ratio,
        pool_mode,
        aligned,
    ) -> None:
        assert pool_mode == 1  # the mean
        size = (aligned_height, aligned_width)
        output.copy_(torchvision.ops.roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned))


def import_mmdet() -> types.ModuleType:
    """The package, with its registry filled."""
    operators = Operators("mmcv._ext")
    operators.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = operators
    import mmdet
    from mmdet.utils import register_all_modules

    register_all_modules()
    return mmdet


def load_config(name: str):
    """A shipped config, without the download of a backbone."""
    import mmdet
    from mmengine.config import Config

    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / f"{name}.py")
    config.model.backbone.init_cfg = None
    return config


def shapes_of(name: str) -> dict[str, list[int]]:
    from mmdet.registry import MODELS

    with torch.device("meta"):
        model = MODELS.build(load_config(name).model)
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


def prepare(config, scale: list[int], image: str) -> dict:
    """The batch of one image as the config's test pipeline makes it, with other limits of the size."""
    from mmengine.dataset import Compose

    pipeline = [dict(step) for step in config.test_pipeline]
    for step in pipeline:
        if step["type"] == "Resize":
            step["scale"] = tuple(scale)
    data = Compose(pipeline)({"img_path": image, "img_id": 0, "instances": []})
    return {"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}


def calibrate(model: nn.Module, batch: dict, generator: torch.Generator) -> None:
    """Random weights that behave like trained ones: normalised activations, and heads that find some things."""

    def random(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # running statistics become those of the one image
        norm.weight.copy_(random(norm.weight, 0.5, 1.5))
        norm.bias.copy_(random(norm.bias, -0.3, 0.3))
    data = model.data_preprocessor(batch, False)
    model.backbone.norm_eval, model.backbone.frozen_stages = False, -1
    model.backbone.train()
    model.backbone(data["inputs"])
    model.eval()
    for norm in norms:
        norm.running_var *= random(norm.running_var, 0.8, 1.25)
        norm.running_mean += 0.1 * norm.running_var.sqrt() * random(norm.running_mean, -1, 1)

    # Every output of a head gets this mean and deviation over the image; later heads see what earlier ones choose.
    heads = model.roi_head
    rpn = {model.rpn_head.rpn_cls: (-2.0, 2.0), model.rpn_head.rpn_reg: (0.0, 0.3)}
    calibrate_layers(lambda: model.rpn_head(model.extract_feat(data["inputs"])), generator, rpn)
    box = {heads.bbox_head.fc_cls: (0.0, 2.0), heads.bbox_head.fc_reg: (0.0, 0.7)}
    calibrate_layers(lambda: model.test_step(batch), generator, box)
    heads.bbox_head.fc_cls.bias[-1] += 11.0  # most places are background
    calibrate_layers(lambda: model.test_step(batch), generator, {heads.mask_head.conv_logits: (0.0, 1.0)})


def calibrate_layers(run: Callable, generator: torch.Generator, targets: dict[nn.Module, tuple[float, float]]) -> None:
    """Random weights for output layers such that, in `run()`, each channel has a given mean and deviation."""
    outputs = {layer: [] for layer in targets}
    hooks = [
        layer.register_forward_hook(lambda module, _inputs, output: outputs[module].append(output)) for layer in targets
    ]
    for layer in targets:
        nn.init.normal_(layer.weight, std=0.05, generator=generator)
    run()
    for hook in hooks:
        hook.remove()
    for layer, (mean, deviation) in targets.items():
        flat = torch.cat([output.movedim(1, -1).flatten(0, -2) for output in outputs[layer]])  # [places, channels]
        factor = deviation / flat.std(dim=0)
        layer.weight *= factor.reshape(-1, *[1] * (layer.weight.dim() - 1))
        layer.bias.copy_(mean + (layer.bias - flat.mean(dim=0)) * factor)


def record(model: nn.Module, batch: dict) -> dict:
    """What every stage of the model gives for a batch of one image."""
    found = {}

    def keep(name: str, pick: Callable) -> Callable:
        def hook(_module, inputs, output):
            found.setdefault(name, pick(inputs, output))

        return hook

    heads = model.roi_head
    hooks = [
        module.register_forward_hook(keep(name, pick))
        for name, module, pick in (
            ("image", model.backbone, lambda i, o: i[0]),
            ("backbone", model.backbone, lambda i, o: list(o)),
            ("pyramid", model.neck, lambda i, o: list(o)),
            ("objectness", model.rpn_head, lambda i, o: list(o[0])),
            ("anchor_deltas", model.rpn_head, lambda i, o: list(o[1])),
            ("proposals", heads.bbox_roi_extractor, lambda i, o: i[1][:, 1:].clone()),
            ("class_scores", heads.bbox_head, lambda i, o: o[0]),
            ("box_deltas", heads.bbox_head, lambda i, o: o[1]),
            ("mask_logits", heads.mask_head, lambda i, o: o),
        )
    ]
    result = model.test_step(batch)[0].pred_instances
    for hook in hooks:
        hook.remove()
    return {**found, **{key: result[key] for key in ("bboxes", "scores", "labels", "masks")}}


def conventions(generator: torch.Generator) -> dict:
    """Anchors, decoded boxes and resized images, each with its arguments."""
    import mmcv
    from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder

    grids = [(13, 21), (7, 11), (4, 6), (2, 3), (1, 2)]
    anchors = AnchorGenerator(strides=[4, 8, 16, 32, 64], ratios=[0.5, 1.0, 2.0], scales=[8]).grid_priors(
        grids, device="cpu"
    )
    corners = torch.rand(200, 2, 2, generator=generator) * 300
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 1], dim=1)
    deltas = torch.randn(200, 12, generator=generator)  # of three classes
    deltas[:20] = 8 * deltas[:20].abs()  # beyond the limit of growth; only MMDetection has one of shrinking
    stds = (0.1, 0.1, 0.2, 0.2)
    decoded = DeltaXYWHBBoxCoder(target_stds=stds).decode(boxes, deltas)
    resized = []
    for height, width, long_edge, short_edge in [
        (480, 640, 1333, 800),
        (427, 640, 1333, 800),
        (333, 1000, 1333, 800),
        (37, 53, 400, 240),
        (900, 601, 400, 240),
        (101, 100, 151, 150),
        (3, 500, 600, 32),
        (64, 48, 64, 80),
    ]:
        image = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        result = mmcv.imrescale(image.numpy(), (long_edge, short_edge))
        resized.append((image, long_edge, short_edge, torch.from_numpy(result)))
    return {
        "grids": grids,
        "anchors": anchors,
        "boxes": boxes,
        "deltas": deltas,
        "decoded": decoded,
        "resized": resized,
    }


def main(job: dict) -> None:
    """Do the job and write its results."""
    from mmdet.datasets import CocoDataset
    from mmdet.registry import MODELS

    folder = Path(job["folder"])
    torch.save({name: shapes_of(name) for name in job["names"]}, folder / "names.pt")
    torch.save(conventions(torch.Generator().manual_seed(job["seed"])), folder / "conventions.pt")
    for run in job["runs"]:
        generator = torch.Generator().manual_seed(job["seed"])
        torch.manual_seed(job["seed"])
        config = load_config(run["config"])
        config.merge_from_dict(run["options"])
        model = MODELS.build(config.model)
        model.init_weights()
        model.eval()
        with torch.no_grad():
            calibrate(model, prepare(config, run["scale"], run["images"][0]), generator)
            outputs = [record(model, prepare(config, run["scale"], image)) for image in run["images"]]
        meta = {"mmdet_version": "3.3.0", "dataset_meta": CocoDataset.METAINFO}
        torch.save({"meta": meta, "state_dict": model.state_dict()}, folder / f"{run['name']}.pth")
        torch.save(outputs, folder / f"{run['name']}.out.pt")


if __name__ == "__main__":
    import_mmdet()
    main(json.loads(Path(sys.argv[1]).read_text()))
