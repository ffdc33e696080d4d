"""Where weights come from: a local file, the package itself, a URL, Detectron2's model zoo, or torchvision's."""

from __future__ import annotations

import difflib
import errno
import http.client
import os
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision
from detectron2.utils.file_io import Detectron2Handler, PathManager

from maskrcnn_plus import zoo
from maskrcnn_plus.weights.conversion import WeightsError

_TORCHVISION = "torchvision://"
_NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def local_path(source: str) -> str:
    """The local file of a source of weights, downloaded into a cache where it is not on this machine.

    Args:
        source: a file; `maskrcnn_plus://NAME`, a model that comes with the package; anything that Detectron2's path
            manager knows (`https://...`, `detectron2://...`); or a model of torchvision, for detection or
            classification: `torchvision://NAME`, with its best weights, or `torchvision://NAME@WEIGHTS`
            (`torchvision://resnet50@IMAGENET1K_V1`). Those go to torch.hub's cache under their official names, and
            their hash is checked.

    Raises:
        WeightsError: the package or torchvision has no such model or weights, the download failed, or the source is
            the bare name of a shipped model; it says what to do instead.
    """
    if source.startswith(zoo.SCHEME):
        return str(zoo.find_model_file(source.removeprefix(zoo.SCHEME)))
    if source.startswith(_TORCHVISION):
        return _torchvision_file(source)
    if not is_elsewhere(source):
        path = os.path.expanduser(source)
        if not os.path.exists(path) and source in zoo.read_table():
            raise WeightsError(f"Weights file {source} does not exist. Did you mean {zoo.SCHEME}{source}?")
        return path
    try:
        return PathManager.get_local_path(source)
    except (OSError, RuntimeError, ValueError, AssertionError, http.client.HTTPException) as error:
        url = source
        if source.startswith(Detectron2Handler.PREFIX):
            url = Detectron2Handler.S3_DETECTRON2_PREFIX + source.removeprefix(Detectron2Handler.PREFIX)
        cache = os.path.expanduser(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache"))
        raise WeightsError(_failed(source, url, error, cache, "FVCORE_CACHE")) from error


def is_elsewhere(source: str) -> bool:
    """Whether a source of weights is an address and no file of the user's."""
    return "://" in source


def folder_of(source: str) -> Path:
    """The folder of a file of weights; the current one for other sources, beside which nothing can be put."""
    return Path() if is_elsewhere(source) else Path(os.path.expanduser(source)).parent


def _torchvision_file(source: str) -> str:
    url = _torchvision_url(source)
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(url).path))
    if os.path.exists(path):
        return path
    # Official names end with the first digits of their hash.
    match = torch.hub.HASH_REGEX.search(os.path.basename(path))
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        torch.hub.download_url_to_file(url, path, match.group(1) if match else None, progress=False)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        folder = os.path.dirname(path)
        raise WeightsError(_failed(source, url, error, folder, "TORCH_HOME", f" or put it at {path}")) from error
    return path


def _torchvision_url(source: str) -> str:
    name, _, wanted = source.removeprefix(_TORCHVISION).partition("@")
    models = torchvision.models.list_models(module=torchvision.models)
    models += torchvision.models.list_models(module=torchvision.models.detection)
    if name not in models:
        raise WeightsError(f"{source}: torchvision has no model {name!r} here.{_close(name, models)}")
    weights = torchvision.models.get_model_weights(name).__members__
    if (wanted or "DEFAULT") not in weights:
        raise WeightsError(f"{source}: torchvision's weights of {name} are {', '.join(weights) or 'none'}.")
    return weights[wanted or "DEFAULT"].url


def _close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else f" Known: {', '.join(sorted(known))}."


def _failed(source: str, url: str, error: Exception, folder: str, variable: str, other_place: str = "") -> str:
    if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
        return (
            f"The weights {source} could not be stored in {folder}: {error.strerror}. Make room or give yourself the "
            f"right to write there, or name another folder in the environment variable {variable}."
        )
    return (
        f"The weights {source} could not be downloaded ({type(error).__name__}: {error}). Without a network, download "
        f"{url} by hand and give the path of the file{other_place}."
    )
