"""A model whose objects are known, and servers of it within this process."""

import io
import threading
import time
from contextlib import contextmanager

import cv2
import numpy as np
import tifffile
import torch
from detectron2.config import LazyCall as L
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from torch import nn

from maskrcnn_plus.data.mapper import InstanceMapper
from maskrcnn_plus.inference.predictor import Predictor


class Values(nn.Module):
    """Finds an object for each value of the image above 0: its pixels, score value / 255, class value % 2.

    It waits while its `gate` is closed, and notes how many images it sees at once, and that it is not called while it
    runs.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.gate = threading.Event()
        self.gate.set()
        self.calls = []
        self.running = threading.Lock()
        self.error = None

    def forward(self, batch):
        assert self.running.acquire(blocking=False), "the model runs twice at a time"
        try:
            self.calls.append(len(batch))
            assert self.gate.wait(20)
            if self.error is not None:
                raise self.error
            return [{"instances": self._find(example["image"][0])} for example in batch]
        finally:
            self.running.release()

    def _find(self, image):
        values = [value for value in image.unique().tolist() if value > 0]
        masks = torch.stack([image == value for value in values]) if values else torch.zeros(0, *image.shape).bool()
        found = Instances(tuple(image.shape), pred_masks=masks, scores=torch.tensor(values) / 255)
        found.pred_boxes = Boxes(torch.zeros(len(values), 4))
        for k, mask in enumerate(masks):
            y, x = torch.where(mask)
            found.pred_boxes.tensor[k] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
        found.pred_classes = torch.tensor(values, dtype=torch.int64) % 2
        return found


def make_predictor():
    config = {
        "model": L(Values)(),
        "dataloader": {"test": {"mapper": L(InstanceMapper)(is_train=False, augmentations=[], percentiles=None)}},
        "train": {"device": "cpu"},
        "dataset": {"thing_classes": ["nucleus", "speck"]},
    }
    return Predictor(OmegaConf.create(config, flags={"allow_objects": True}), "random")


def draw(seed=0, height=60, width=80, count=6):
    """Rectangles of different values, uint8 [height, width]."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), dtype=np.uint8)
    for value in rng.permutation(np.arange(100, 256))[:count]:
        y, x = rng.integers(0, height - 12), rng.integers(0, width - 12)
        image[y : y + rng.integers(3, 12), x : x + rng.integers(3, 12)] = value
    return image


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def tiff(image, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, image, **options)
    return file.getvalue()


@contextmanager
def serving(predictor, root_path="", **settings):
    """A `TestClient` of a running application, whose server knows the path above it, and its service."""
    from fastapi.testclient import TestClient

    from maskrcnn_plus.apps.serve.app import create_app
    from maskrcnn_plus.apps.serve.settings import Settings

    app = create_app(predictor, Settings(**settings))
    with TestClient(app, base_url="http://127.0.0.1", root_path=root_path) as client:
        yield client, app.service
    assert not app.service.folder.exists()


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def finished(client, key):
    """The state of an image of the page, once it has one that lasts."""
    states = []

    def is_finished():
        states.append(client.get(f"/page/images/{key}").json())
        return states[-1]["state"] not in ("waiting", "running")

    wait_until(is_finished)
    return states[-1]


class Proxy:
    """ASGI middleware like a proxy that forwards what lies below a path, without that path."""

    def __init__(self, app, path):
        self.app, self.path = app, path

    async def __call__(self, scope, receive, send):
        from starlette.responses import PlainTextResponse

        if scope["type"] == "http":
            if not scope["path"].startswith(f"{self.path}/"):
                await PlainTextResponse("of another server", 404)(scope, receive, send)
                return
            path = scope["path"].removeprefix(self.path)
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self.app(scope, receive, send)


@contextmanager
def listening(predictor, below="", **settings):
    """The address of a server in a thread of this process, `below` a path of a proxy, and its service."""
    import uvicorn

    from maskrcnn_plus.apps.serve.app import create_app
    from maskrcnn_plus.apps.serve.settings import Settings

    app = create_app(predictor, Settings(**settings))
    served = Proxy(app, below) if below else app
    server = uvicorn.Server(
        uvicorn.Config(served, port=0, log_level="warning", lifespan="on", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}{below}", app.service
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()
    assert not app.service.folder.exists()
