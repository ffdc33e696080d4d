# Data of COCO's layout with Detectron2's loaders: `dataset.train` and `dataset.val` name a json and its folder of
# images. Needs a top-level `model`, whose `input_format` the images are read in, and `train`. Of 8-bit photographs the
# mapper makes what Detectron2's DatasetMapper makes.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader

from maskrcnn_plus.data.check import checked_dataset
from maskrcnn_plus.data.coco import register_coco
from maskrcnn_plus.data.loader import TrainLoader
from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.data.stream import TrainingStream
from maskrcnn_plus.evaluation import COCOMaskEvaluator, ProposalRecallEvaluator

from .coco_classes import thing_classes as coco_classes

dataset = dict(
    root="datasets/coco",
    train=dict(json="${dataset.root}/annotations/instances_train2017.json", images="${dataset.root}/train2017"),
    val=dict(json="${dataset.root}/annotations/instances_val2017.json", images="${dataset.root}/val2017"),
    coco_classes=coco_classes,
    thing_classes="${dataset.coco_classes}",  # of other data: what its json has objects of, or the names given here
    num_classes="${maskrcnn_plus.num_classes:${dataset.thing_classes}}",
    max_objects=100,  # an image: the limit of detections
    percentiles=None,  # such as [1.0, 99.8] of an image's pixels, mapped to 0..255
    channels=None,  # of files that are neither grey nor RGB, by index or name: those of the network, such as [0, 0, 1]
    projection=None,  # of z stacks to images: "max" or "mean"
    negatives=False,  # whether images without objects are trained on
    balance=0.0,  # images with a class that is in less than this part of them are repeated
    on_error="raise",
)

dataloader = dict(
    train=L(TrainLoader)(
        dataset=L(TrainingStream)(
            dataset=L(checked_dataset)(
                names=L(register_coco)(
                    name="coco_train",
                    json_file="${dataset.train.json}",
                    image_root="${dataset.train.images}",
                    thing_classes="${dataset.thing_classes}",
                    on_error="${dataset.on_error}",
                ),
                on_error="${dataset.on_error}",
                negatives="${dataset.negatives}",
                balance="${dataset.balance}",
                select="${dataset.channels}",
                projection="${dataset.projection}",
            ),
            total_batch_size="${dataloader.train.total_batch_size}",
            seed="${train.seed}",
            start_iter=0,  # set when a run resumes
        ),
        mapper=L(InstanceMapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=(640, 672, 704, 736, 768, 800), sample_style="choice", max_size=1333
                ),
                L(T.RandomFlip)(horizontal=True),
            ],
            image_format="${model.input_format}",
            percentiles="${dataset.percentiles}",
            select="${dataset.channels}",
            projection="${dataset.projection}",
            on_error="${dataset.on_error}",
            min_area=0,
            recompute_boxes=False,  # those of the annotations
        ),
        total_batch_size=16,
        aspect_ratio_grouping=False,  # the order of the data is exact on resume
        num_workers=4,
        settings="${train}",
    ),
    test=L(build_detection_test_loader)(
        dataset=L(checked_dataset)(
            names=L(register_coco)(
                name="coco_val",
                json_file="${dataset.val.json}",
                image_root="${dataset.val.images}",
                thing_classes="${dataset.thing_classes}",
                on_error="${dataset.on_error}",
            ),
            on_error="${dataset.on_error}",
            filter_empty=False,
        ),
        mapper=L(InstanceMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
            image_format="${model.input_format}",
            percentiles="${dataset.percentiles}",
            select="${dataset.channels}",
            projection="${dataset.projection}",
            on_error="${dataset.on_error}",
        ),
        num_workers=4,
    ),
    evaluator=L(COCOMaskEvaluator)(
        dataset_name="${dataloader.test.dataset.names}",
        max_detections="${dataset.max_objects}",
        on_error="${dataset.on_error}",
    ),
    proposal_evaluator=L(ProposalRecallEvaluator)(
        dataset_name="${dataloader.test.dataset.names}", on_error="${dataset.on_error}"
    ),
)
