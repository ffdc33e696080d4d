"""Configs of this package in Detectron2's training loop, which builds the loader before it knows where it begins."""

import logging

import pytest
import torch
from detectron2.config import instantiate
from detectron2.engine import SimpleTrainer
from torch import nn

from maskrcnn_plus.config import detectron2_config, get_config
from maskrcnn_plus.data.loader import DETECTRON2_DOES, unread_settings
from maskrcnn_plus.training.data import build_train_loader

LOADER = "detectron2.maskrcnn_plus.data.loader"
READ_BY_DETECTRON2 = {"seed", "cudnn_benchmark"}  # by `default_setup`, beside the keys of its own configs
UNCHECKED = {"init_allow_partial"}  # Detectron2's checkpointer takes what fits and lists what does not


class Recorder(nn.Module):
    """Remembers the images that it is given, and learns nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, batch):
        self.seen.append([(entry["file_name"], entry["image"].sum().item()) for entry in batch])
        return {"loss": self.weight.sum()}


def demo_config(workers):
    cfg = get_config("demo/mask_rcnn_lite0_fpn")
    cfg.dataset.num_train = 6
    cfg.dataloader.train.num_workers = workers
    cfg.dataloader.train.total_batch_size = 2
    cfg.dataloader.train.mapper.augmentations[0].size = 32
    return cfg


def images_of_detectron2(cfg, start, stop):
    """What Detectron2's trainer shows a model in the iterations from `start` to `stop`."""
    model = Recorder().to(cfg.train.device)
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), torch.optim.SGD(model.parameters(), 0.1))
    trainer.train(start, stop)
    return model.seen


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_of_detectron2s_trainer_sees_what_an_uninterrupted_one_sees(workers):
    cfg = demo_config(workers)
    whole = images_of_detectron2(cfg, 0, 5)
    assert images_of_detectron2(cfg, 3, 5) == whole[3:]
    assert whole[3:] != whole[:2]
    ours = iter(build_train_loader(cfg, 3))
    again = Recorder()
    for _ in range(2):
        again(next(ours))
    assert again.seen == whole[3:]


def test_what_detectron2s_trainer_does_not_read_is_in_its_log_and_our_trainer_is_quiet(caplog, monkeypatch):
    logger = logging.getLogger("detectron2")
    monkeypatch.setattr(logger, "propagate", True)  # Detectron2's `setup_logger` ends it,
    monkeypatch.setattr(logger, "handlers", [])  # and its handlers write other names into the records
    cfg = demo_config(0)
    cfg.train.clip_grad_norm, cfg.train.channels_last = 0, False
    with caplog.at_level(logging.WARNING, logger="detectron2"):
        images_of_detectron2(cfg, 0, 2)
    (message,) = [record.getMessage() for record in caplog.records if record.name == LOADER]
    assert "does not read train.ema.enabled=True, train.best.metric=segm/AP50," in message
    assert "clip_grad_norm" not in message
    caplog.clear()
    loader = build_train_loader(cfg, 0)
    model = Recorder()
    SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), 0.1)).train(0, 1)
    assert not [record for record in caplog.records if record.name == LOADER]


def test_in_our_trainer_no_batch_draws_from_the_generator_of_the_model():
    batches = iter(build_train_loader(demo_config(workers=1), 0))
    state = torch.get_rng_state()
    next(batches)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_key_that_detectron2s_configs_do_not_have_is_told():
    settings, theirs = get_config("nuclei/mask_rcnn_plus").train, detectron2_config("common/train.py").train
    told = {key.partition(".")[0] for key in DETECTRON2_DOES}
    assert set(settings) - set(theirs) - READ_BY_DETECTRON2 - UNCHECKED == told
    assert unread_settings(theirs) == []
    assert unread_settings(settings) == [
        "train.clip_grad_norm=5.0",
        "train.channels_last=True",
        "train.ema.enabled=True",
        "train.best.metric=matching/mAP",
        "train.amp.dtype=bfloat16 (on GPUs it takes float16)",
    ]
