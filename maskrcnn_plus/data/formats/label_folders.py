"""Which label image belongs to which image: two folders side by side, or two names in one folder."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np

from maskrcnn_plus.data.formats.files import list_tree
from maskrcnn_plus.data.formats.image_finder import IMAGE_FOLDER, LABEL_FOLDER, same_text
from maskrcnn_plus.data.formats.instance_maps import read_instance_map
from maskrcnn_plus.data.images import IMAGE_SUFFIXES, ImageReadError

_PICTURES_OF_LABELS = re.compile(r"visuali|overlay|preview", re.IGNORECASE)
_LABEL_WORDS = r"masks?|labels?|lbl|segm?|instances?|gt"
_LABEL_END = re.compile(rf"[_-]({_LABEL_WORDS}|cp_masks|labelled|object[ _-]identities)$", re.IGNORECASE)
_LABEL_START = re.compile(rf"^({_LABEL_WORDS}|lblimg)[_-]", re.IGNORECASE)
_IMAGE_START = re.compile(r"^(images?|img|im)[_-]", re.IGNORECASE)
_TRACKING = re.compile(r"(.+)_(GT|ST)")  # of the Cell Tracking Challenge: 01/t000.tif, 01_GT/SEG/man_seg000.tif
_IMAGE_ENDS = ("", "_img", "_image")


@dataclass
class LabelledImage:
    """An image with its label images.

    Attributes:
        image: the file.
        labels: label image and its class, None where its folder names none.
        root: the folder above those of images and labels.
    """

    image: Path
    root: Path
    labels: list[tuple[Path, str | None]] = field(default_factory=list)


@dataclass
class Pairing:
    """What `pair_files` found.

    Attributes:
        images: with at least one label image each.
        unlabelled: images of the same folders without any.
        orphans: label images without an image.
        rivals: folders with the same names, of which nobody can tell which is meant.
        left_out: folders of label images beside one that tells more objects apart.
    """

    images: list[LabelledImage] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)
    rivals: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)


def pair_files(root: Path) -> Pairing:
    """Find the label images of a folder by the names of files and folders.

    Two folders side by side hold images and label images of the same names (also with `_mask` and the like at their
    end), in sub-folders of the same names, or a sub-folder a class; or that of label images is among the images; or
    NAME.tif has a NAME_masks.tif beside it, or NAME.jpg a NAME.png; or they are a sequence of the Cell Tracking
    Challenge.

    Args:
        root: folder of the data set.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for file in list_tree(root, IMAGE_SUFFIXES) if root.is_dir() else ():
        by_folder[file.parent].append(file)
    below: dict[Path, dict[Path, list[Path]]] = defaultdict(lambda: defaultdict(list))  # files by a folder's children
    for folder, files in by_folder.items():
        for child in (folder, *folder.parents):
            if child == root:
                break
            below[child.parent][child] += files
    pairing, taken = Pairing(), set()
    for folder in sorted(by_folder):
        if folder.name == "SEG" and (match := _TRACKING.fullmatch(folder.parent.name)):
            images = by_folder.get(folder.parent.with_name(match[1]), [])
            if not taken.intersection(images):  # GT comes before ST
                _pair_frames(folder.parent.parent, images, by_folder[folder], pairing)
            taken.update(images, *(files for other, files in by_folder.items() if folder.parent in other.parents))
    parents = sorted(below, key=lambda folder: len(folder.parts))
    for parent, is_inside in itertools.product(parents, (False, True)):  # masks/ beside images/, then among images
        children = {child: files for child, files in below[parent].items() if not taken.intersection(files)}
        if is_inside:
            children = {child: files for child, files in children.items() if LABEL_FOLDER.search(child.name)}
            children[parent] = [file for file in by_folder.get(parent, ()) if file not in taken]
        rivals: dict[Path, list[Path]] = defaultdict(list)
        for labels, images in _folder_pairs(children, parent, pairing):
            rivals[images].append(labels)
            taken.update(children[labels], children[images])
        for images, several in rivals.items():
            labels = _choose_folder(several, children, pairing)
            _pair_folders(parent, (images, children[images]), (labels, children[labels]), pairing)
    for folder, files in by_folder.items():
        _pair_names(folder, [file for file in files if file not in taken], pairing)
    return pairing


def _folder_pairs(children: dict[Path, list[Path]], parent: Path, pairing: Pairing) -> Iterable[tuple[Path, Path]]:
    """Folders of label images among those of one folder, each with its folder of images."""
    children = {child: files for child, files in children.items() if not _PICTURES_OF_LABELS.search(child.name)}
    named = [child for child in children if child != parent and LABEL_FOLDER.search(child.name)]
    others = [child for child in children if child not in named]
    if not named and len(others) == 2 and parent not in others:
        named = _by_content(others, children)
        others = [child for child in others if child not in named]
    for child in named:
        keys = {key for file in children[child] for key, _ in _label_keys(file.relative_to(child))}
        shared = {
            other: sum(any(key in keys for key in _keys(file.relative_to(other))) for file in children[other])
            for other in others
        }
        ranks = {other: (count, bool(IMAGE_FOLDER.search(other.name))) for other, count in shared.items() if count}
        best = [other for other, rank in ranks.items() if rank == max(ranks.values())]
        if best:
            pairing.rivals += best if len(best) > 1 else []
            yield child, best[0]


def _choose_folder(folders: list[Path], children: dict[Path, list[Path]], pairing: Pairing) -> Path:
    """Of several folders of label images of the same images the one whose first file has most objects."""
    if len(folders) == 1:
        return folders[0]
    counts = {}
    for folder in folders:
        try:
            counts[folder] = len(np.unique(read_instance_map(children[folder][0])[0]))
        except ImageReadError:
            counts[folder] = 0
    best = [folder for folder in folders if counts[folder] == max(counts.values())]
    if len(best) > 1:
        pairing.rivals += best
    pairing.left_out += [folder for folder in folders if folder != best[0]]
    return best[0]


def _by_content(folders: list[Path], children: dict[Path, list[Path]]) -> list[Path]:
    """The one of two folders with the same names whose first file looks like a label image, if one does."""
    names = [{file.relative_to(folder).with_suffix("") for file in children[folder]} for folder in folders]
    if len(names[0] & names[1]) < 0.5 * max(map(len, names)):
        return []
    found = [folder for folder in folders if _looks_like_labels(children[folder][0])]
    return found if len(found) == 1 else []


def _looks_like_labels(file: Path) -> bool:
    """Whether neighbouring pixels mostly have the same value, of few."""
    try:
        label_map, _ = read_instance_map(file)
    except ImageReadError:
        return False
    flat = (label_map[:, 1:] == label_map[:, :-1]).mean() if label_map.shape[1] > 1 else 0
    return flat > 0.9 and len(np.unique(label_map)) < 0.02 * label_map.size


def _keys(file: PurePath) -> list[PurePath]:
    """Names by which an image of a folder is known, the closest first."""
    file = PurePath(same_text(str(file)))
    return [file.with_name(file.stem), file.with_name(_IMAGE_START.sub("", file.stem))]


def _label_keys(file: PurePath) -> list[tuple[PurePath, str | None]]:
    """Images that a label image of a folder may belong to, the likeliest first, and its class where a folder has it."""
    file = PurePath(same_text(str(file)))
    stems = [file.stem, _LABEL_END.sub("", file.stem), _LABEL_START.sub("", file.stem)]
    stems += [PurePath(stem).stem for stem in stems if PurePath(stem).suffix.lower() in IMAGE_SUFFIXES]  # a.jpg.png
    names = [file.with_name(stem) for stem in stems if stem]
    keys = [(name, None) for name in names]
    if len(file.parts) > 1:
        keys += [(PurePath(*name.parts[1:]), file.parts[0]) for name in names]
    return keys


def _pair_folders(
    root: Path, images: tuple[Path, list[Path]], labels: tuple[Path, list[Path]], pairing: Pairing
) -> None:
    known: dict[PurePath, LabelledImage] = {}
    entries = [LabelledImage(file, root) for file in images[1]]
    for nearness in range(2):
        for each in entries:
            known.setdefault(_keys(each.image.relative_to(images[0]))[nearness], each)
    for file in labels[1]:
        candidates = _label_keys(file.relative_to(labels[0]))
        found = next(((known[key], name) for key, name in candidates if key in known), None)
        if found is None:
            pairing.orphans.append(file)
        else:
            found[0].labels.append((file, found[1]))
    pairing.images += [each for each in entries if each.labels]
    pairing.unlabelled += [each.image for each in entries if not each.labels]


def _pair_frames(root: Path, images: list[Path], labels: list[Path], pairing: Pairing) -> None:
    """Pair t000.tif with man_seg000.tif."""
    known = {file.stem.removeprefix("man_seg"): file for file in labels}
    for file in images:
        label = known.pop(file.stem.removeprefix("t"), None)
        if label is None:
            pairing.unlabelled.append(file)
        else:
            pairing.images.append(LabelledImage(file, root, [(label, None)]))
    pairing.orphans += known.values()


def _pair_names(folder: Path, files: list[Path], pairing: Pairing) -> None:
    """Pair NAME with NAME_masks and the like in one folder, or NAME.jpg with NAME.png that looks like a label image."""
    stems: dict[str, Path] = {}
    for file in files:
        stems.setdefault(same_text(file.stem), file)
    labelled: dict[Path, LabelledImage] = {}
    for stem, file in stems.items():
        bases = [base for pattern in (_LABEL_END, _LABEL_START) if (base := pattern.sub("", stem)) != stem]
        names = (base + end for base in bases for end in _IMAGE_ENDS)
        image = next((stems[name] for name in names if name in stems), None)
        if image is not None:
            labelled.setdefault(image, LabelledImage(image, folder)).labels.append((file, None))
    twins = [(image, file) for file in files if (image := stems[same_text(file.stem)]) != file]
    if not labelled and twins and _looks_like_labels(twins[0][1]):
        labelled = {image: LabelledImage(image, folder, [(file, None)]) for image, file in twins}
    labels = {file for each in labelled.values() for file, _ in each.labels}
    pairing.images += labelled.values()
    if labelled:
        pairing.unlabelled += [file for file in stems.values() if file not in labels and file not in labelled]
