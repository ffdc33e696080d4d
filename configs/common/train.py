# How to train: all keys that maskrcnn_plus.training reads. Lengths are in iterations (optimizer steps).
from maskrcnn_plus.device import default_device

train = dict(
    output_dir="output",
    init_checkpoint="",  # weights to start from: a file, detectron2://..., https://..., torchvision://maskrcnn_resnet50_fpn
    init_allow_partial=False,  # start from them even if they have less than 95 % of what is outside the RoI heads
    max_iter=1000,
    max_hours=0.0,  # after which it ends, with fewer iterations and the whole learning rate schedule; 0: no limit
    device=default_device(),  # the GPU where there is one; or "cpu", "cuda", "cuda:1"
    seed=0,
    channels_last=True,
    amp=dict(enabled=False, dtype="bfloat16"),  # "bfloat16" on CPU or CUDA, "float16" on CUDA
    accumulate=1,  # batches whose gradients are averaged for one step
    clip_grad_norm=0.0,  # 0 does not clip
    ema=dict(enabled=False, decay=0.999),  # evaluate and keep an exponential moving average of the weights
    # fp16_compression sends gradients with 16 bits: as float16 under float16 AMP, else as bfloat16
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=200, max_to_keep=2),
    best=dict(metric="", mode="max"),  # the metric that chooses model_best.pth; "" keeps none
    eval_period=0,  # 0 evaluates after the last iteration only
    patience=0,  # evaluations in turn without a better train.best.metric after which a training ends; 0: none does
    validation_loss=0,  # images of the test data whose losses each evaluation tells beside its figures
    eval_proposals=False,  # evaluations also tell the recall of proposals, `dataloader.proposal_evaluator`
    log_period=20,
    logger=[],  # beside the console, metrics.json and TensorBoard: "wandb", "mlflow"
    cudnn_benchmark=False,
)
