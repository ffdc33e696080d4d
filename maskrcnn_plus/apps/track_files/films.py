"""The films among input files, and the objects that were predicted in their frames."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Container, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.structures import Instances

from maskrcnn_plus.apps.predict_files.inputs import InputFile
from maskrcnn_plus.apps.predict_files.sources import SourceImage, iterate_images
from maskrcnn_plus.data.channels import ChannelRule
from maskrcnn_plus.data.frames import VIDEO_SUFFIXES
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.results import FORMATS
from maskrcnn_plus.results.predictions import coco_fields


@dataclass
class Film:
    """Frames that belong together: those of a file, or the single images of a folder.

    Attributes:
        name: of its results.
        is_folder: whether each file is a frame.
        files: that it is read from, in order.
        frames: the name of each frame's results.
        labels: what `predict_files` calls each frame in its failures.
    """

    name: str
    is_folder: bool
    files: list[InputFile] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def images(self, rule: ChannelRule) -> Iterator[SourceImage | None]:
        """The frames in turn, none decoded before it is opened; None for a file of a folder that cannot be read.

        Raises:
            ImageReadError: the file is missing or damaged; a video that breaks off early, after its last frame.
        """
        for file in self.files:
            with closing(iterate_images(file, rule)) as images:
                if self.is_folder:
                    yield _first(images)
                else:
                    yield from images


def _first(images: Iterator[SourceImage]) -> SourceImage | None:
    try:
        return next(images, None)
    except (ValueError, OSError):  # whoever predicted it has said so
        return None


def list_films(files: Sequence[InputFile], rule: ChannelRule) -> list[Film]:
    """Put the frames of files together.

    A video, an animation or a stack is a film of its own. Single images that follow each other and are in one folder
    are the frames of one film, which has the folder's name; an image that cannot be read is one of them. Of other files
    what can be read is taken: whoever predicted them has named the rest.
    """
    films: list[Film] = []
    for file in files:
        with closing(iterate_images(file, rule)) as images:
            first = _first(images)
            if first is None and file.path.lower().endswith(VIDEO_SUFFIXES):
                continue
            film = _film_of(file, films, is_frame=first is None or first.number == 0)
            try:
                for image in itertools.chain([first], images):
                    part = "" if image is None else image.part
                    film.frames.append(file.name if image is None else image.name)
                    film.labels.append(f"{file.path}, {part}" if part else file.path)
            except (ValueError, OSError):
                continue
    return films


def _film_of(file: InputFile, films: list[Film], is_frame: bool) -> Film:
    """The film that a file is, or that it is a frame of; a new one is added to `films`."""
    last, folder = films[-1] if films else None, os.path.dirname(file.path)
    if is_frame and last and last.is_folder and os.path.dirname(last.files[0].path) == folder:
        last.files.append(file)
        return last
    name = file.name
    if is_frame:
        name = os.path.dirname(file.name) or os.path.basename(os.path.abspath(folder)) or "images"
    taken = {film.name for film in films}
    numbered = (f"{name}_{k}" for k in range(2, len(taken) + 3))
    name = name if name not in taken else next(each for each in numbered if each not in taken)
    films.append(Film(name, is_folder=is_frame, files=[file]))
    return films[-1]


class StoredFrames:
    """The objects of a film's frames, as the format coco has them, read frame by frame."""

    def __init__(self, output: Path, film: Film, failed: Container[str], category_ids: Sequence | None) -> None:
        """Nothing is read yet.

        Args:
            output: folder of the results.
            film: whose frames are read.
            failed: labels of frames without results; they count as frames without objects.
            category_ids: the id of each class in the files; None where these have the index of the class.
        """
        paths = [output / FORMATS["coco"] / f"{name}.json" for name in film.frames]
        self._files = [None if label in failed else path for label, path in zip(film.labels, paths, strict=True)]
        self._name = film.name
        self._classes = None if category_ids is None else {each: k for k, each in enumerate(category_ids)}

    def __len__(self) -> int:
        return len(self._files)

    def contents(self) -> Iterator[bytes]:
        """Of each frame's file."""
        for file in self._files:
            yield b"" if file is None or not file.exists() else file.read_bytes()

    def instances(self, size: tuple[int, int]) -> Iterator[Instances]:
        """Objects of each frame, with `pred_boxes`, `scores`, `pred_classes` and `pred_masks_rle`.

        Args:
            size: (height, width) of the frames.

        Raises:
            UserError: a frame has another size.
        """
        for number, content in enumerate(self.contents(), start=1):
            entries = json.loads(content) if content else []
            other = next((e["segmentation"]["size"] for e in entries if tuple(e["segmentation"]["size"]) != size), None)
            if other is not None:
                raise UserError(
                    f"{self._name}: frame {number} has {other[0]} x {other[1]} pixels (height x width), others have "
                    f"{size[0]} x {size[1]}: --track needs frames of one size"
                )
            classes = [entry["category_id"] for entry in entries]
            if self._classes is not None:
                classes = [self._classes[each] for each in classes]
            yield Instances(size, **coco_fields(entries, classes, size))
