"""ByteTrack on boxes, by the package `trackers`, in the place of `MaskTracker`.

Source: Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box" (2022). Boxes are compared
with a margin (Yang et al., "Hard to Track Objects with Irregular Motions and Similar Appearances?", 2023), since small
objects move by more than their size.
"""

from __future__ import annotations

import numpy as np
from detectron2.structures import Instances

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.results.supervision import to_supervision

_MARGIN = 0.3  # of a box's sides
_SURE_SCORE = 0.6


class ByteTracker:
    """Tracks by a Kalman filter of each box and the overlap of boxes, sure detections first."""

    def __init__(self, memory: int = 30) -> None:
        """Start without tracks.

        Args:
            memory: frames after which a lost track ends.

        Raises:
            UserError: the package `trackers` is not installed.
        """
        try:
            from trackers import BIoU, ByteTrackTracker
        except ImportError as error:
            raise UserError("ByteTrack needs the package trackers: pip install 'maskrcnn_plus[video]'") from error
        self._tracker = ByteTrackTracker(
            lost_track_buffer=memory,
            frame_rate=30.0,  # in which the buffer is counted: no conversion
            minimum_consecutive_frames=1,
            track_activation_threshold=_SURE_SCORE,
            high_conf_det_threshold=_SURE_SCORE,
            iou=BIoU(_MARGIN),
        )

    def update(self, instances: Instances) -> np.ndarray:
        """Match the objects of the next frame.

        Args:
            instances: with `pred_boxes`, `scores` and `pred_classes`.

        Returns:
            The identity of each object, int64 [N], from 1; 0 for an object that was not seen in the frame before, or
            whose score begins no track.
        """
        detections = to_supervision(instances)
        detections.mask = None
        detections.data["index"] = np.arange(len(detections))
        tracked = self._tracker.update(detections)
        identities = np.zeros(len(detections), dtype=np.int64)
        if len(tracked):
            identities[tracked.data["index"]] = tracked.tracker_id + 1
        return identities
