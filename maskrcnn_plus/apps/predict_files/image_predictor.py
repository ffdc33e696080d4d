"""One image of an input file -> its instances: whole or by tiles, at the scale of its objects, alone or in a batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from detectron2.structures import Instances
from tqdm import tqdm

from maskrcnn_plus.apps.predict_files.sources import SourceImage
from maskrcnn_plus.data.channels import get_rule
from maskrcnn_plus.data.images import read_image_size
from maskrcnn_plus.data.limits import reading_by_parts
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.errors import first_line
from maskrcnn_plus.inference.kept_tiles import KeptTiles
from maskrcnn_plus.inference.predictor import Predictor
from maskrcnn_plus.inference.tile_choice import TileChoice
from maskrcnn_plus.inference.tiling import predict_tiled
from maskrcnn_plus.masks.rle_masks import encode_masks
from maskrcnn_plus.results import needs_pixels


class ImagePredictor:
    """Predicts images of files as a command line's options say."""

    def __init__(
        self,
        predictor: Predictor,
        tile: int | str,
        soft: bool = False,
        roi: tuple[int, int, int, int] | None = None,
        skip_background: bool = False,
    ) -> None:
        """Plan the tiles.

        Args:
            predictor: the model.
            tile: see `TileChoice`.
            soft: instances have the probabilities of their masks too.
            roi, skip_background: see `predict_files`.

        Raises:
            ValueError: a `tile` out of range.
        """
        self.predictor, self.soft, self.roi, self.skip_background = predictor, soft, roi, skip_background
        self.rule = get_rule(predictor.mapper)
        self.channels = self.rule.count or 3
        self.tiles = TileChoice(predictor, tile)

    def needs_pixels(self, image: SourceImage, formats: Sequence[str]) -> bool:
        """Whether the file's name does not do, for the prediction and results of these formats."""
        if image.number or self.roi or needs_pixels(formats, image.path) or self.predictor.auto_scale is not None:
            return True
        with reading_by_parts():
            size = read_image_size(image.path, self.rule)
        return self.tiles.options(*size) is not None

    def part(self, windows: ImageWindows | None) -> ImageWindows | None:
        """What of an image is predicted."""
        return windows if self.roi is None or windows is None else windows.crop(*self.roi)

    def place(self, instances: Instances, windows: ImageWindows | None) -> Instances:
        """Instances of the part in the coordinates of the image."""
        return instances if self.roi is None else instances.placed(*self.roi[:2], *windows.shape[:2])

    def find_scale(self, windows: ImageWindows | None) -> tuple[float | None, dict[str, Any] | None]:
        """Diameter of the objects, and the arguments of `predict_tiled` for an image that is predicted by tiles.

        Args:
            windows: of the part that is predicted; None for an image that does not need its pixels.
        """
        if windows is None:
            return None, None
        diameter = self.predictor.find_diameter(windows)
        return diameter, self.tiles.options(*windows.shape[:2], diameter)

    def predict_tiled(
        self, windows: ImageWindows, diameter: float | None, options: dict[str, Any], kept: KeptTiles | None = None
    ) -> Instances:
        """Predict an image by tiles; `kept` as for the function of that name."""
        options = {**options, "diameter": diameter, "skip_background": self.skip_background, "kept": kept}
        return encode_masks(predict_tiled(self.predictor, windows, **options))

    def predict_whole(self, images: Sequence[tuple[SourceImage, ImageWindows | None, float | None]]) -> list[Instances]:
        """Predict images as a batch.

        Args:
            images: each with the pixels of its part, where they are needed, and diameter.

        Raises:
            ValueError, OSError: one of them cannot be used.
        """
        sources = [
            windows if image.number or diameter or self.roi else image.path for image, windows, diameter in images
        ]
        diameters = [diameter for _, _, diameter in images]
        if len(images) == 1:
            found = [self.predictor.predict(sources[0], soft_masks=self.soft, diameter=diameters[0])]
        else:
            options = {"batch_size": len(images), "soft_masks": self.soft}
            found = self.predictor.predict(sources, diameter=diameters, **options)
        limit = self.predictor.max_objects
        for (image, _, _), instances in zip(images, found, strict=True):
            if limit is not None and len(instances) >= limit:
                print_line(
                    f"{image.path}: {len(instances)} objects, the most that the model gives, so that more may be "
                    "missing: predict by tiles (--tile) or raise the limit of the config (dataset.max_objects)"
                )
        return [encode_masks(instances) for instances in found]


def explain_no_objects(predictor: Predictor, num_images: int) -> str:
    """What to look at when nothing was found in any image."""
    threshold = predictor.score_threshold or 0
    channels = getattr(predictor.mapper, "channels", 3)
    images = "the image" if num_images == 1 else f"all {num_images} images"
    if predictor.auto_scale is None:
        size = f"an image of 512 x 512 px is scaled by {predictor.get_scale(512, 512):.2g}; set dataset.scale"
    else:
        size = f"their diameter: {predictor.auto_scale.describe()}; give another --diameter"
    return (
        f"0 objects in {images}. Likely causes: a score threshold that is too high ({threshold:g}; try a lower "
        f"--score-threshold); objects of another size than in the training ({size}); other channels, contrast or "
        f"staining than in the training (the model sees {channels} channel{'s' * (channels > 1)}); or weights of "
        "another data set."
    )


def failure_reason(error: Exception, *names: str) -> str:
    """Why an image cannot be predicted, in one line without the names that it is listed under."""
    reason = first_line(error)
    if not isinstance(error, (ValueError, OSError)) and reason != type(error).__name__:
        reason = f"{type(error).__name__}: {reason}"
    for name in names:
        reason = reason.removeprefix(f"{name}: ")
    return reason


def print_line(line: str) -> None:
    """Show a line beside the progress bar."""
    tqdm.write(f"predict: {line}", file=sys.stderr)
