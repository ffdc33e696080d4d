"""What a predictor is made of, as plain values: other processes and machines build the same one."""

from __future__ import annotations

from dataclasses import dataclass

from maskrcnn_plus.checkpoints.choice import choose_config
from maskrcnn_plus.config import get_score_threshold
from maskrcnn_plus.inference.examples import choose_channels
from maskrcnn_plus.inference.predictor import Predictor


@dataclass(frozen=True)
class PredictorSource:
    """Arguments of a command line that say which predictor is meant.

    Attributes:
        weights: checkpoint, exported folder or another source of weights.
        config_file: a LazyConfig file or name; None for what the weights say.
        overrides: "key=value" changes to the config.
        score_threshold: least score of an object; None for the config's, or 0.5.
        device, diameter, precision: see `Predictor`.
        channels, projection: see `choose_channels`.
    """

    weights: str
    config_file: str | None = None
    overrides: tuple[str, ...] = ()
    score_threshold: float | None = None
    device: str | None = None
    diameter: float | None = None
    precision: str | None = None
    channels: tuple[int | str, ...] | None = None
    projection: str | None = None

    def build(self, device: str | None = None) -> Predictor:
        """Load the weights into the model; on another device where one is given.

        Raises:
            ValueError, OSError: see `Predictor` and `choose_config`.
        """
        cfg = choose_config(self.config_file, self.weights, self.overrides)
        predictor = Predictor(
            cfg,
            self.weights,
            score_threshold=get_score_threshold(cfg, self.score_threshold),
            device=device or self.device,
            diameter=self.diameter,
            precision=self.precision,
        )
        choose_channels(predictor.mapper, self.channels, self.projection)
        return predictor
