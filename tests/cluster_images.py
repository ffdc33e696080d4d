"""Images of rectangles and a model that finds them, for the tests of prediction in shards and on a cluster."""

import cv2
import grey_values
import numpy as np

CONFIG = (
    grey_values.SOURCE
    + """

class Ending(GreyValues):
    # Notes the size of each batch where batches.txt is; 66 ends the process.
    def forward(self, batch):
        if os.path.exists("batches.txt"):
            with open("batches.txt", "a") as file:
                file.write(f"{len(batch)}\\n")
        if any((entry["image"][0] == 66).any() for entry in batch):
            os._exit(9)
        return super().forward(batch)


model = L(Ending)()
train = dict(device="cpu")
dataloader = dict(test=dict(mapper=L(InstanceMapper)(is_train=False, augmentations=[], percentiles=None)))
dataset = dict(thing_classes=["cell"], score_threshold=0.25)
"""
)

MODEL = ["--config-file", "config.py", "--weights", "weights.pth"]


def draw(path, *values):
    """PNG with a rectangle for each value."""
    image = np.zeros((60, 60), dtype=np.uint8)
    for k, value in enumerate(values):
        image[3 * k : 3 * k + 2, 5:25] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
