"""A run of `maskrcnn_plus.training.run` that takes milliseconds: a linear model on numbers, with all of its parts."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import types

import torch
from detectron2.config import LazyCall as L
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from maskrcnn_plus.config import get_config
from maskrcnn_plus.training import run


class Model(nn.Module):
    """Predicts a number of three; `freeze_at` 1 freezes its first layer."""

    def __init__(self, num_classes: int = 1, freeze_at: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, num_classes)
        self.first.requires_grad_(freeze_at < 1)
        self.proposal_generator = self.propose

    def forward(self, batch):
        """Losses of a batch, or a number an image."""
        x = torch.stack([entry["x"] for entry in batch])
        output = self.last(self.norm(self.first(x)))[:, 0]
        if not self.training:
            call(batch)
            return [{"value": value} for value in output.tolist()]
        target = torch.stack([entry["y"] for entry in batch])
        return {"loss": (output - target).square().mean() + 0.1 * torch.rand(())}

    def preprocess_image(self, batch):
        """What `predict_proposals` wants."""
        call([{"index": entry["index"] + 100} for entry in batch])
        return types.SimpleNamespace(tensor=torch.zeros(len(batch), 1, 8, 8))

    def backbone(self, images):
        """Nothing."""

    def propose(self, images, features, truth):
        """No proposal."""
        return [Instances((8, 8), proposal_boxes=Boxes(torch.zeros(0, 4))) for _ in images.tensor], {}


called = []


def call(batch):
    """Let a test do something when an image is evaluated."""
    for function in called:
        function(batch[0]["index"])


class Stream:
    """Endless examples, each a function of its iteration and the process."""

    def __init__(self, start_iter: int = 0, total_batch_size: int = 4) -> None:
        self.start_iter = start_iter
        self.total_batch_size = total_batch_size

    def __iter__(self):
        for iteration in itertools.count(self.start_iter):
            generator = torch.Generator().manual_seed(iteration * 7 + comm.get_rank())
            x = torch.randn(self.total_batch_size, 3, generator=generator)
            yield [{"x": row, "y": row.sum(), "index": iteration, "file_name": f"{iteration}.png"} for row in x]


class Images:
    """The images of an evaluation; process r of R takes those of index r, r + R, ..."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        images = [{"x": torch.randn(3, generator=generator), "index": index} for index in range(count)]
        self.batches = [[image] for image in images[comm.get_rank() :: comm.get_world_size()]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Mean(DatasetEvaluator):
    """Mean of all predictions; like the real ones it gathers them, and refuses images without any."""

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.count = count

    def reset(self) -> None:
        """Forget."""
        self.values = {}

    def process(self, inputs, outputs) -> None:
        """Keep."""
        for entry, output in zip(inputs, outputs, strict=True):
            self.values[entry["index"]] = output.get("value", 0.0)

    def evaluate(self):
        """Gather."""
        parts = comm.gather(self.values)
        if not parts:
            return None
        values = {index: value for part in parts for index, value in part.items()}
        if len(values) != self.count:
            raise ValueError(f"{self.count - len(values)} images never got predictions")
        return {self.name: {"mean": sum(values.values()) / self.count}}


def config(output: object, images: int = 3, **settings: object) -> DictConfig:
    """The demo's config around these parts, with keys of `train` in `settings`."""
    cfg = get_config("demo/mask_rcnn_lite0_fpn")
    cfg.dataset = {"num_classes": 1}
    cfg.model = L(Model)(num_classes="${dataset.num_classes}", freeze_at=0)
    cfg.optimizer.lr = 0.01
    cfg.dataloader = {
        "train": L(iterate)(
            dataset=L(Stream)(start_iter=0, total_batch_size="${..total_batch_size}"), total_batch_size=4
        ),
        "test": L(Images)(count=images),
        "evaluator": [L(Mean)(name="a", count=images), L(Mean)(name="b", count=images)],
        "proposal_evaluator": L(Mean)(name="proposals", count=images),
    }
    cfg.train.update(
        output_dir=str(output),
        device="cpu",
        max_iter=6,
        channels_last=False,
        log_period=1,
        best={"metric": "a/mean", "mode": "max"},
        checkpointer={"period": 2, "max_to_keep": 2},
        ema={"enabled": True, "decay": 0.9},
    )
    cfg.train.update(settings)
    return cfg


def iterate(dataset, total_batch_size):
    """A data loader that loads nothing."""
    return dataset


def execute(cfg: DictConfig, resume: bool = False, eval_only: bool = False) -> object:
    """Run it in this process."""
    return run(argparse.Namespace(resume=resume, eval_only=eval_only, config_file=""), cfg)


def kill_at(index: int, rank: int, number: int = signal.SIGTERM) -> None:
    """Send a signal to this process when it evaluates an image, if it is the process of that rank."""

    def kill(seen: int) -> None:
        if seen == index and comm.get_rank() == rank:
            os.kill(os.getpid(), number)

    called[:] = [kill]


def resume(output, change=lambda cfg: None, **settings):
    """Go on with the run of the fixtures, with changes to its config; gives its log."""
    cfg = config(output, eval_period=2, checkpointer={"period": 1, "max_to_keep": 0}, **settings)
    change(cfg)
    execute(cfg, resume=True)
    return (output / "log.txt").read_text()


def load(path):
    """A checkpoint."""
    return torch.load(path, weights_only=True)


def num_iterations(output):
    """Iterations that a finished run has trained."""
    return load(output / "model_final.pth")["trainer"]["iteration"] + 1


def edit(path, change):
    """Change a checkpoint in place."""
    content = load(path)
    change(content)
    torch.save(content, path)


def equal(a, b):
    """Whether two checkpoints, or parts of them, hold the same, bit for bit."""
    if isinstance(a, dict):
        return set(a) == set(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def entries(output):
    """Of metrics.json, without what was measured in seconds."""
    found = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if "time" not in k and "eta" not in k} for entry in found]


def without_config(content):
    """A checkpoint without the config, which names the output folder."""
    return {key: value for key, value in content.items() if key not in ("config", "description")}


def old_format(content):
    """What a checkpoint held before it named its config and its parameters."""
    del content["config"], content["trainer"]["parameters"]
