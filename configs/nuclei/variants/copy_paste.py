# Copy-paste augmentation (Ghiasi et al., 2021): up to 30 nuclei of another training image in every second image. Nuclei
# do not hide each other: they are pasted beside those of the image.
from detectron2.config import LazyCall as L

from maskrcnn_plus.data import CopyPasteMapper

from ..mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model, optimizer, train

dataloader.train.mapper = L(CopyPasteMapper)(
    mapper=dataloader.train.mapper,
    dataset="${dataloader.train.dataset.dataset}",
    probability=0.5,
    max_objects=30,
    max_overlap=0.0,
)

train.output_dir = "output/nuclei_copy_paste"
