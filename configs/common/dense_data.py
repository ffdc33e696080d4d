# Loaders and evaluators for dense scenes. A config sets `dataloader.train.dataset.dataset.names` and
# `dataloader.test.dataset.names`, and has a top-level `dataset` with `max_objects`, `percentiles`,
# `scale`, `score_threshold` and `on_error`, and where files are neither grey nor RGB `channels` and `projection`; and a
# top-level `model`, in whose `input_format` the images are read.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader

from maskrcnn_plus.data.augmentation import RandomRotate90, RandomScaleCrop, ScaleImage
from maskrcnn_plus.data.check import checked_dataset
from maskrcnn_plus.data.intensity import RandomIntensity
from maskrcnn_plus.data.loader import TrainLoader
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.stream import TrainingStream
from maskrcnn_plus.evaluation import COCOMaskEvaluator, MatchingEvaluator, ProposalRecallEvaluator

dataloader = dict(
    train=L(TrainLoader)(
        dataset=L(TrainingStream)(
            dataset=L(checked_dataset)(
                names=None,
                on_error="${dataset.on_error}",
                negatives="${oc.select:dataset.negatives,false}",
                balance="${oc.select:dataset.balance,0.0}",
                select="${oc.select:dataset.channels}",
                projection="${oc.select:dataset.projection}",
            ),
            total_batch_size="${dataloader.train.total_batch_size}",
            seed="${train.seed}",
            start_iter=0,  # set when a run resumes
        ),
        mapper=L(InstanceMapper)(
            is_train=True,
            augmentations=[
                L(RandomScaleCrop)(size=256, scale=(1.0, 2.0)),
                L(T.RandomFlip)(horizontal=True, vertical=False),
                L(RandomRotate90)(),
                L(RandomIntensity)(brightness=(0.8, 1.25), contrast=(0.7, 1.3), gamma=(0.7, 1.4), noise=(0.0, 8.0)),
            ],
            image_format="${model.input_format}",
            percentiles="${dataset.percentiles}",
            select="${oc.select:dataset.channels}",
            projection="${oc.select:dataset.projection}",
            on_error="${dataset.on_error}",
        ),
        total_batch_size=4,
        aspect_ratio_grouping=False,
        num_workers=1,
        settings="${train}",
    ),
    test=L(build_detection_test_loader)(
        dataset=L(checked_dataset)(names=None, on_error="${dataset.on_error}", filter_empty=False),
        mapper=L(InstanceMapper)(
            is_train=False,
            augmentations=[L(ScaleImage)(scale="${dataset.scale}")],
            image_format="${model.input_format}",
            percentiles="${dataset.percentiles}",
            select="${oc.select:dataset.channels}",
            projection="${oc.select:dataset.projection}",
            on_error="${dataset.on_error}",
        ),
        num_workers=0,
    ),
    evaluator=[
        L(MatchingEvaluator)(
            dataset_name="${dataloader.test.dataset.names}",
            score_threshold="${dataset.score_threshold}",
            on_error="${dataset.on_error}",
        ),
        L(COCOMaskEvaluator)(
            dataset_name="${dataloader.test.dataset.names}",
            max_detections="${dataset.max_objects}",
            on_error="${dataset.on_error}",
        ),
    ],
    proposal_evaluator=L(ProposalRecallEvaluator)(
        dataset_name="${dataloader.test.dataset.names}", on_error="${dataset.on_error}"
    ),
)
