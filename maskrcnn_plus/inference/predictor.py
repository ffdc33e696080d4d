"""A trained model, applied to images through the pre-processing of its config's evaluation.

    predictor = Predictor("model_best.pth")
    instances = predictor.predict("image.png")

Shape shorthand: N objects of one image of H x W pixels, C channels; [h, w] the image as the network sees it.
"""

import os
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf

from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.inference.auto_scale import AutoScale, choose_diameter, correct_diameter
from maskrcnn_plus.inference.examples import (
    AnyImage,
    find_fixed_scale,
    find_intensity_range,
    in_rgb_order,
    make_example,
    measure_scale,
    warn_if_shrunk,
)
from maskrcnn_plus.inference.loading import RANDOM, find_config, load_model
from maskrcnn_plus.inference.optimize import optimize_for_inference
from maskrcnn_plus.inference.precision import use_bfloat16
from maskrcnn_plus.inference.stream import StreamResult, stream
from maskrcnn_plus.mask_rcnn import without_dense_masks
from maskrcnn_plus.masks.label_map import masks_to_rles
from maskrcnn_plus.masks.rle_masks import RLEMasks
from maskrcnn_plus.results.predictions import Predictions
from maskrcnn_plus.roi.box_predictor import last_box_predictor

__all__ = ["RANDOM", "Predictor"]


class Predictor:
    """Image -> `Instances`, by the model and the test mapper of a LazyConfig."""

    def __init__(
        self,
        config: DictConfig | str | os.PathLike,
        weights: str | None = None,
        *,
        device: str | None = None,
        score_threshold: float | None = None,
        optimize: bool = True,
        compile: bool = False,
        diameter: float | None = None,
        precision: str | None = None,
    ):
        """Build the model and load its weights.

        Args:
            config: the weights file of a training of this package, which knows its config, or another source of one, as
                of `local_path` ("maskrcnn_plus://nuclei" comes with the package), or the folder of an exported model
                (`maskrcnn_plus.export`), which runs on the CPU; or a LazyConfig, or the path or name of one
                (`maskrcnn_plus.config.get_config`), together with `weights`. It has `model`,
                `dataloader.test.mapper` (a callable on `{"file_name": path}`) and, optionally, `train.device`,
                `train.channels_last` (CPU only, default true) and `dataset.thing_classes` (list of class names).
            weights: checkpoint file or exported folder; "random" leaves the model as the config builds it, for tests
                and timing.
            device: overrides `train.device`; "auto" is the GPU where there is one.
            score_threshold: keeps objects with a score of at least this; by default the config's
                `dataset.score_threshold`, and all objects of the model where it has none. Objects below the model's own
                threshold (`test_score_thresh` of its box predictor) are never seen here.
            optimize: fold batch norms and the like, see `optimize_for_inference`; the results stay the same to 1e-4.
            compile: also compile the backbone with `torch.compile`, which takes a minute once a process. On a CPU it
                gained nothing for a ResNet-50 that is optimised.
            diameter: median diameter of the objects of all images, pixels, for a config that brings objects to one
                diameter (`ScaleToDiameter`); None estimates it for each image (`maskrcnn_plus.inference.auto_scale`).
            precision: "float32" (default), or "bfloat16" for the networks of the model: two digits of precision at up
                to twice the speed, on GPUs and CPUs with AVX512-BF16 or AMX; elsewhere it is slower, which is said.
                Boxes, scores and what is computed of them stay in float32.

        Raises:
            ValueError: there is no such config, a config key is missing or cannot be built, the device is not there,
                the threshold is not in 0..1, there is no such precision, or the weights are not given, missing,
                unreadable or of another model.
                A file that knows no config, or one with parts that are not built from a checkpoint: WeightsError.
        """
        config, weights = find_config(config, weights)
        if score_threshold is None:
            score_threshold = OmegaConf.select(config, "dataset.score_threshold")
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ValueError(f"score_threshold is {score_threshold}, it must be between 0 and 1")
        self.score_threshold = score_threshold
        self.model, self.mapper, self.classes, self.device = load_model(config, weights, device, precision)
        self._scales: tuple[Any, dict[tuple[int, int], float]] = self.mapper, {}  # by the size of the image
        number = OmegaConf.select(config, "model.roi_heads.num_classes") or 1
        self._numbered_names = [f"class {k}" for k in range(number)]
        self.auto_scale = AutoScale.for_mapper(self.mapper, self.model, diameter)
        if precision == "bfloat16" and not os.path.isdir(weights):  # an exported model has its own
            use_bfloat16(self.model)
        elif optimize:
            optimize_for_inference(self.model)
        if compile:
            self.model.backbone.compile(dynamic=True)

    @property
    def class_names(self) -> list[str]:
        """A name a class: `dataset.thing_classes`, else the weights' own, else "class 0", "class 1", ..."""
        return self.classes.names if self.classes else self._numbered_names

    @property
    def category_ids(self) -> list[int | float | str] | None:
        """The id of each class in the COCO file of the training data, where the weights know it."""
        return self.classes.category_ids if self.classes else None

    @property
    def max_objects(self) -> int | None:
        """Most objects that the model gives an image; None where it does not say."""
        return getattr(last_box_predictor(getattr(self.model, "roi_heads", None)), "test_topk_per_image", None)

    def predict(
        self,
        images: AnyImage | Sequence[AnyImage],
        *,
        batch_size: int = 1,
        intensity_range: tuple[float, float] | None = None,
        input_format: str = "RGB",
        soft_masks: bool = False,
        diameter: float | Sequence[float | None] | None = None,
    ) -> Predictions | list[Predictions]:
        """Predict the objects of one image, or of each image of a list.

        Args:
            images: a path or an array, or a list of them, of any sizes. An array is [H, W] or [H, W, C] in RGB order,
                of integers or floats as a file might hold them, and is treated as that file. Of four channels of uint8
                where the model takes fewer the last is alpha; `dataset.channels` of the config picks others.
            batch_size: images that the network sees at once. Only images that it pads to the same size share a batch,
                so that the results are those of single images (but for rounding).
            intensity_range: (low, high) grey values that are mapped to black and white, in place of the percentiles of
                each array; see the method `intensity_range`. Only for arrays.
            input_format: order of the channels of arrays: "RGB", or "BGR" as OpenCV reads files.
            soft_masks: results also have `pred_mask_probs` [N, m, m], the probabilities of each mask in its box, from
                which cut-outs get soft edges.
            diameter: median diameter of the objects of all images, or of each image of the list, pixels; see
                `__init__`.

        Returns:
            `Predictions` (`Instances` that know the names of their classes, the diameter that the scale follows from
            and, of a TIFF that says it, the size of a pixel) on the CPU in the coordinates of the image as given, one
            an image in the order of the list: `pred_boxes` (xyxy, pixels), `scores` [N] in falling order,
            `pred_classes` [N] and, of a model with masks, `pred_masks_rle` (`RLEMasks`).

        Raises:
            ValueError, OSError: an image cannot be used; the message names its file or its index in the list. Another
                `input_format`.
            TypeError: something else than paths and arrays.
        """
        if isinstance(images, (list, tuple)):
            names = [f"image {index} of the list (from 0)" for index in range(len(images))]
            images = [in_rgb_order(image, input_format) for image in images]
            named = list(zip(images, names, strict=True))
            return self._predict(named, batch_size, intensity_range, soft_masks, diameter)
        image = in_rgb_order(images, input_format)
        return self._predict([(image, "the image")], 1, intensity_range, soft_masks, diameter)[0]

    __call__ = predict

    def stream(
        self,
        source: int | str | os.PathLike | Iterable[np.ndarray],
        *,
        latest: bool | None = None,
        track: bool = False,
        input_format: str = "RGB",
        **options: Any,
    ) -> Generator[StreamResult, None, None]:
        """Predict the frames of a camera, a video or any iterator, one after the other, for as long as there are any.

        Args:
            source: the number of a camera, an address ("rtsp://...") or video file for OpenCV, or an iterable of arrays
                as of `predict`, of which a frame is taken when it is needed.
            latest: predict the newest frame always, and drop those that arrived while the one before was predicted; by
                default of cameras and addresses, and not of files and iterables, whose frames are all predicted.
            track: give objects an identity that they keep from frame to frame, `instances.track_ids`.
            input_format: order of the channels of arrays, "RGB" or "BGR".
            **options: of `predict`.

        Yields:
            A `StreamResult` a frame. To end a camera's, leave the loop and call the generator's `close`.

        Raises:
            ValueError: the source gives no frame, or a frame cannot be used.
        """
        return stream(self, source, latest=latest, track=track, input_format=input_format, **options)

    def intensity_range(self, image: np.ndarray | ImageWindows) -> tuple[float, float] | None:
        """Grey values of an image that become black and white, where the config normalises by percentiles.

        For images that are predicted in parts, which would else be normalised by their own percentiles.

        Args:
            image: array [H, W] or [H, W, C], or a subsample of its pixels; or windows, of which a subsample is read.

        Returns:
            (low, high), None for a config without percentiles.

        Raises:
            ImageReadError: the channels do not fit, or pixels of windows are NaN or infinite.
        """
        return find_intensity_range(self.mapper, image)

    def get_scale(self, height: int, width: int) -> float:
        """Pixels of the network's input for one of an image of height x width pixels (of the longer side)."""
        if self._scales[0] is not self.mapper:
            self._scales = self.mapper, {}
        known = self._scales[1]
        if (height, width) not in known:
            known[height, width] = measure_scale(self.mapper, height, width)
        return known[height, width]

    @property
    def fixed_scale(self) -> float | None:
        """`get_scale` every image but huge ones; None of a config that brings images of all sizes to one."""
        return find_fixed_scale(self.get_scale)

    def usual_scale(self, height: int, width: int) -> float:
        """`get_scale` an image, were there no limit of the longer side: that of a square with the same shorter side."""
        short = min(height, width)
        return self.fixed_scale or self.get_scale(short, short)

    @torch.inference_mode()
    def warm_up(self, height: int = 64, width: int = 64) -> None:
        """Run the model on a black image of [height, width] pixels, so that no user waits for what is done once."""
        channels = len(self.model.pixel_mean)
        self.model([{"image": torch.zeros(channels, height, width), "height": height, "width": width}])

    def find_diameter(self, windows: ImageWindows) -> float | None:
        """The diameter that the scale of an image follows from, pixels; None where the scale does not depend on it.

        Raises:
            ImageReadError: the image cannot be used.
        """
        if self.auto_scale is None:
            return None
        windows = windows.pick(get_rule(self.mapper))
        return self.auto_scale.find_in_windows(windows, lambda: self.intensity_range(windows))

    def _predict(
        self,
        images: list[tuple[AnyImage, str]],
        batch_size: int,
        intensity_range: tuple[float, float] | None,
        soft_masks: bool,
        diameter: float | Sequence[float | None] | None,
    ) -> list[Predictions]:
        """Results of images with names. An image waits until there are enough for its batch.

        Those whose scale did not fit what was found at it are predicted once more.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
        diameters = list(diameter) if isinstance(diameter, Sequence) else [diameter] * len(images)
        results: dict[int, Predictions] = {}
        waiting: dict[tuple[int, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
        for index, ((image, name), diameter) in enumerate(zip(images, diameters, strict=True)):
            auto_scale = choose_diameter(self.auto_scale, diameter)
            example = make_example(self.mapper, image, name, intensity_range, auto_scale and auto_scale.find)
            usual = self.auto_scale.scale(example["object_diameter"]) if self.auto_scale else self.usual_scale
            warn_if_shrunk(example, os.fspath(image) if isinstance(image, (str, os.PathLike)) else name, usual)
            group = waiting[self._padded_shape(example["image"])]
            group[index] = example
            if len(group) == batch_size:
                results.update(zip(group, self._run(list(group.values()), soft_masks), strict=True))
                group.clear()
        for group in waiting.values():
            if group:
                results.update(zip(group, self._run(list(group.values()), soft_masks), strict=True))
        for index, (image, _) in enumerate(images):
            if not isinstance(image, ImageWindows):
                results[index].image = image if isinstance(image, np.ndarray) else os.fspath(image)
            path = image.name if isinstance(image, ImageWindows) else results[index].image
            if isinstance(path, str):
                results[index].pixel_size = tiff_pixel_size(path)
        corrected = {k: new for k in range(len(images)) if (new := correct_diameter(results[k])) is not None}
        if corrected:
            again = [images[index] for index in corrected]
            better = self._predict(again, batch_size, intensity_range, soft_masks, list(corrected.values()))
            results.update(zip(corrected, better, strict=True))
        return [results[index] for index in range(len(images))]

    @torch.inference_mode()
    def _run(self, examples: list[dict[str, Any]], soft_masks: bool) -> list[Predictions]:
        with without_dense_masks(self.model, soft_masks):
            outputs = self.model(examples)
        return [
            self._finish(output["instances"].to("cpu"), example.get("object_diameter"))
            for output, example in zip(outputs, examples, strict=True)
        ]

    def _finish(self, instances: Instances, object_diameter: float | None) -> Predictions:
        """The instances that are wanted, the best first, with their masks as RLE."""
        order = instances.scores.argsort(descending=True, stable=True)
        if self.score_threshold is not None:
            order = order[instances.scores[order] >= self.score_threshold]
        instances = instances[order]
        if instances.has("pred_masks") and not instances.has("pred_masks_rle"):  # of Detectron2's own models
            instances.pred_masks_rle = RLEMasks(masks_to_rles(instances.pred_masks), instances.image_size)
            instances.remove("pred_masks")
        facts = {"class_names": self.class_names, "category_ids": self.category_ids}
        facts["channel_rule"] = get_rule(self.mapper)
        return Predictions(instances.image_size, object_diameter=object_diameter, **facts, **instances.get_fields())

    def _padded_shape(self, image: torch.Tensor) -> tuple[int, ...]:
        """[C, h, w] of an image as Detectron2 pads it for the backbone."""
        grain = max(getattr(getattr(self.model, "backbone", None), "size_divisibility", 1), 1)
        return (image.shape[0], *(-(-side // grain) * grain for side in image.shape[1:]))
