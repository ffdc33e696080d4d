"""Training of whole models: our parts against Detectron2's own."""

from __future__ import annotations

import copy

import torch
from detectron2.config import instantiate
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.timing import compare
from maskrcnn_plus.data import resolve_classes
from maskrcnn_plus.device import use_channels_last
from maskrcnn_plus.masks.label_masks import LabelMapMasks
from maskrcnn_plus.roi import PyramidROIAlign
from maskrcnn_plus.rpn import BatchedRPN
from maskrcnn_plus.training.fast_gradients import use_fast_convolutions


def stock(cfg: DictConfig) -> DictConfig:
    """The same model of Detectron2's own RPN and RoI poolers."""
    cfg = copy.deepcopy(cfg)
    if cfg.model.proposal_generator._target_ is BatchedRPN:
        cfg.model.proposal_generator._target_ = RPN
    for name in ("box_pooler", "mask_pooler"):
        pooler = cfg.model.roi_heads[name]
        if pooler._target_ is PyramidROIAlign:
            pooler._target_ = ROIPooler
            pooler.pooler_type = pooler.get("pooler_type", "ROIAlignV2")
    return cfg


def build_pair(cfg: DictConfig, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Our model in channels_last memory and the stock one in contiguous memory, with equal weights."""
    torch.manual_seed(0)
    ours = instantiate(cfg.model)
    theirs = instantiate(stock(cfg).model)
    theirs.load_state_dict(ours.state_dict())
    return use_channels_last(ours.to(device)), theirs.to(device)


def benchmark_training_step(cfg: DictConfig, rounds: int, device: torch.device) -> None:
    """Forward, backward and optimizer step of one batch, in the config's precision: our parts against Detectron2's."""
    resolve_classes(cfg, splits=["train"])
    cfg.dataloader.train.num_workers = 0
    batch = next(iter(instantiate(cfg.dataloader.train)))
    stock_batch = [{**entry, "instances": copy.deepcopy(entry["instances"])} for entry in batch]
    for entry in stock_batch:
        masks = entry["instances"].gt_masks
        if isinstance(masks, LabelMapMasks):
            entry["instances"].gt_masks = masks.to_bitmasks()
    steps = []
    pair = build_pair(cfg, device)
    amp = getattr(torch, cfg.train.amp.dtype) if cfg.train.amp.enabled else None
    losses = [losses_of(model, examples) for model, examples in zip(pair, (batch, stock_batch), strict=True)]
    if device.type == "cpu":
        use_fast_convolutions(pair[0], amp)  # as the trainer does
    for model, examples in zip(pair, (batch, stock_batch), strict=True):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

        def step(model: nn.Module = model, examples: list = examples, optimizer=optimizer) -> dict[str, Tensor]:
            torch.manual_seed(0)
            with torch.autocast(device.type, amp, enabled=amp is not None):
                results = model(examples)
            optimizer.zero_grad()
            sum(results.values()).backward()
            optimizer.step()
            return results

        steps.append(step)
    with EventStorage(0):
        result = compare(*steps, rounds)
    type_ = "float32" if amp is None else cfg.train.amp.dtype
    size = tuple(batch[0]["image"].shape[1:])
    print(f"Training step, {len(batch)} images of {size}, {type_}: ours vs stock {result}")
    for name in losses[0]:
        print(f"  {name:14s} {losses[0][name]:.8f} vs {losses[1][name]:.8f}")


def losses_of(model: nn.Module, examples: list[dict]) -> dict[str, float]:
    """Losses of a batch in contiguous memory, where both models' convolutions round alike.

    In channels_last memory they differ in the last digit, which may swap two proposals of nearly equal score and with
    them the boxes that are sampled.
    """
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format).train()
    torch.manual_seed(0)
    with EventStorage(0), torch.no_grad():
        return {name: value.item() for name, value in model(examples).items()}
