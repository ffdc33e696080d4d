# Mask R-CNN R50-FPN, 1x, of stock Detectron2 parts with the model zoo's values: the anchor that our parts are compared
# with. `dataset.train` and `dataset.val` name a COCO json and its folder of images.
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import DatasetMapper, build_detection_test_loader, build_detection_train_loader
from detectron2.model_zoo import get_config

from maskrcnn_plus.data.check import checked_dataset
from maskrcnn_plus.data.coco import register_coco
from maskrcnn_plus.data.stream import TrainingStream
from maskrcnn_plus.evaluation import COCOMaskEvaluator

from ..common.train import train

dataset = dict(
    root="datasets/coco",
    train=dict(json="${dataset.root}/annotations/instances_train2017.json", images="${dataset.root}/train2017"),
    val=dict(json="${dataset.root}/annotations/instances_val2017.json", images="${dataset.root}/val2017"),
    num_classes=80,
    max_objects=100,  # an image: the limit of detections
    on_error="raise",
)

model = get_config("common/models/mask_rcnn_fpn.py").model
model.roi_heads.num_classes = "${dataset.num_classes}"
model.roi_heads.box_predictor.test_topk_per_image = "${dataset.max_objects}"

dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(TrainingStream)(
            dataset=L(checked_dataset)(
                names=L(register_coco)(
                    name="coco_train", json_file="${dataset.train.json}", image_root="${dataset.train.images}"
                ),
                on_error="${dataset.on_error}",
            ),
            total_batch_size="${dataloader.train.total_batch_size}",
            seed="${train.seed}",
            start_iter=0,  # set when a run resumes
        ),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=(640, 672, 704, 736, 768, 800), sample_style="choice", max_size=1333
                ),
                L(T.RandomFlip)(horizontal=True),
            ],
            image_format="BGR",
            use_instance_mask=True,
        ),
        total_batch_size=16,
        aspect_ratio_grouping=False,  # the order of the data is exact on resume
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(checked_dataset)(
            names=L(register_coco)(
                name="coco_val", json_file="${dataset.val.json}", image_root="${dataset.val.images}"
            ),
            on_error="${dataset.on_error}",
            filter_empty=False,
        ),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
            image_format="BGR",
        ),
        num_workers=4,
    ),
    evaluator=L(COCOMaskEvaluator)(
        dataset_name="${dataloader.test.dataset.names}", max_detections="${dataset.max_objects}"
    ),
)

optimizer = get_config("common/optim.py").SGD
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x

train.output_dir = "output/coco"
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.max_iter = 90000
train.checkpointer.period = 5000
train.checkpointer.max_to_keep = 5
train.eval_period = 5000
train.best.metric = "segm/AP"
