import torch
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

from maskrcnn_plus.learning_rate import linear_lr

AdamW = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=linear_lr(4e-4, images=4),
    weight_decay=0.05,
)

# One cycle: linear warm-up over a tenth of the run, then a cosine down to 1%.
one_cycle = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.1,
    warmup_method="linear",
    warmup_factor=0.04,
)
