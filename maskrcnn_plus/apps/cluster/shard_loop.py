"""The files of a shard -> rows of its tables, and results of the usual formats beside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detectron2.structures import Instances

from maskrcnn_plus.apps.cluster.job import Job
from maskrcnn_plus.apps.cluster.stores import Store
from maskrcnn_plus.apps.cluster.tables import Rows, get_image_id
from maskrcnn_plus.apps.cluster.tiles import SpreadImage, plan_spread
from maskrcnn_plus.apps.predict_files.image_predictor import failure_reason
from maskrcnn_plus.apps.predict_files.prediction_loop import PredictionLoop, TakenImage
from maskrcnn_plus.data.pixel_size import tiff_pixel_size
from maskrcnn_plus.data.windows import ImageWindows
from maskrcnn_plus.inference.kept_tiles import KeptTiles
from maskrcnn_plus.inference.predictor import Predictor


class ShardLoop(PredictionLoop):
    """Collects rows.

    Attributes:
        rows: of the images that were gone through.
        postponed: huge images, which are left to others.
    """

    def __init__(
        self,
        predictor: Predictor,
        job: Job,
        store: Store,
        rows: Rows,
        paths: dict[int, str],
        scratch: Path,
        kept: KeptTiles | None = None,
        only: int | None = None,
    ) -> None:
        """Prepare a part of a job.

        Args:
            predictor: the model.
            job: what is done.
            store: of the results.
            rows: to be filled.
            paths: of each file, as the plan has it, by its position.
            scratch: folder on this machine for results that go to a store.
            kept: of a huge image: nothing is left to others.
            only: of the file, the page or frame that is meant; None for all.
        """
        super().__init__(predictor, job.options)
        self.job, self.store, self.rows, self.kept, self.only = job, store, rows, kept, only
        self.postponed: list[SpreadImage] = []
        self._paths = paths
        self._scratch = scratch if store.local is None else None
        self._output = scratch if store.local is None else store.local / "formats"

    def is_done(self, taken: TakenImage) -> bool:
        """Whether another page or frame is meant."""
        return self.only is not None and taken.image.number != self.only

    def predict_tiled(self, taken: TakenImage, part: ImageWindows, tiles: dict[str, Any]) -> Instances | None:
        """Leave an image of many tiles to several actors."""
        if self.kept is None and self.job.spread:
            spread = plan_spread(self.images, taken, self._paths[taken.position], part, tiles, self.job.spread)
            if spread is not None:
                self.postponed.append(spread)
                return None
        if self.kept is None:
            return self.images.predict_tiled(part, taken.diameter, tiles)
        with self.kept:
            return self.images.predict_tiled(part, taken.diameter, tiles, self.kept)

    def write(self, taken: TakenImage, instances: Instances) -> None:
        """Add the rows of an image and write its files."""
        image, options = taken.image, self.options
        path = self._paths[taken.position]
        pixel_size = options.pixel_size or tiff_pixel_size(image.path)
        try:
            instances = self.images.place(instances, taken.windows)
            if options.formats:
                self.write_files(self._output, taken, instances, options.formats, pixel_size, path)
        except ValueError as error:
            self.fail(taken.name, error, image.path, taken.position)
            return
        self.rows.add(instances, get_image_id(taken.position, image.number), path, image.name, image.part, pixel_size)

    def fail(self, name: str, error: Exception, path: str, position: int) -> None:
        """Add a row; the file has the name that the plan has, not that of its copy."""
        known = self._paths[position]
        part = name.removeprefix(path).removeprefix(", ")
        reason = failure_reason(error, name, path, known).replace(path, known)
        self.rows.fail(known, part, reason)

    def upload(self) -> None:
        """Bring the results of the usual formats to their store."""
        if self._scratch is None:
            return
        for folder, _, names in os.walk(self._scratch):
            for name in sorted(names):
                file = Path(folder, name)
                self.store.write(f"formats/{file.relative_to(self._scratch).as_posix()}", file.read_bytes())
                file.unlink()
