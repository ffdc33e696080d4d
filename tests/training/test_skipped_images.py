"""A training tells which images it left out, whatever the process that met them."""

import logging

import torch
from torch import nn

from maskrcnn_plus.data.stream import SKIPPED
from maskrcnn_plus.training.loop import Trainer


class _Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return {"loss": self.weight.square() * len(batch)}


def test_a_training_names_images_when_it_meets_them_and_at_its_end(caplog):
    caplog.set_level(logging.WARNING, logger="maskrcnn_plus")
    batches = [
        [{}, {SKIPPED: (("a.png", "a.png: truncated"),)}],
        [{}, {}],
        [{SKIPPED: (("a.png", "a.png: truncated"),)}],
    ]
    model = _Loss()
    trainer = Trainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), accumulate=1)
    said = []
    step = trainer.run_step

    def run_step():
        step()
        said.append(sum("a.png: truncated" in record.getMessage() for record in caplog.records))

    trainer.run_step = run_step
    trainer.train(0, 3)
    assert said == [1, 1, 1]
    assert caplog.records[-1].getMessage().startswith("1 image was left out of this training:\n  - a.png: truncated")
