"""Why weights do not fit a model: the likely cause, told from what is missing, left over, or of another shape."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from torch import nn

from maskrcnn_plus.checkpoints.report import LoadReport, grouped
from maskrcnn_plus.weights.conversion import Converted, WeightsFile

_HEADS = "roi_heads."
_STATISTICS = (".running_mean", ".running_var")


def find_contradiction(
    report: LoadReport, converted: Mapping[str, Converted], *, bare_backbone: bool, with_heads: bool
) -> str:
    """What in the file shows that it is of another architecture, although the model found its own tensors; or "".

    Of a deeper network of the same width the first blocks fit, and a norm of another kind has weights of the same
    shape.

    Args:
        report: with `left_over`.
        converted: what the converter made of the file.
        bare_backbone: the file has nothing else. Of such files whole stages may be left over, as a model may end
            before the last one.
        with_heads: RoI heads are to agree too.
    """
    known = {source for item in converted.values() for source in item.sources}
    sources = {
        source
        for name, item in converted.items()
        if with_heads or not name.startswith(_HEADS)
        for source in item.sources
    }
    numbers = defaultdict(set)
    for name in sources:
        for container, number in _numbered(name, bare_backbone):
            numbers[container].add(number)
    unknown = [name for name in report.left_over if name not in known]
    more = [
        name
        for name in unknown
        if any(c in numbers and number not in numbers[c] for c, number in _numbered(name, bare_backbone))
    ]
    if more:
        return f"the file has layers that the model lacks ({grouped(more, 3)}): it is of a deeper or another network."
    norms = [n for n in unknown if n.endswith(_STATISTICS) and f"{n.rpartition('.')[0]}.weight" in sources]
    if norms:
        return (
            f"the file has batch norms with running statistics ({grouped(norms, 3)}) where the model has another kind "
            "of norm."
        )
    return ""


def describe_mismatch(
    report: LoadReport, model: nn.Module, file: WeightsFile, converted: Mapping[str, Converted]
) -> str:
    """The likely cause why too little of a model was loaded, in a sentence."""
    if not converted:
        return (
            f"none of its names is known here. The file has {grouped(file.tensors, 3)}; the model has "
            f"{grouped(model.state_dict(), 3)}."
        )
    fits = [*report.loaded, *report.transformed, *report.rows]
    network = [name for name in report.missing if _is_network(name)]
    if shapes := [name for name in report.other_shape if _is_network(name)]:
        shown = _shapes(report, shapes)
        return f"its backbone is wider, narrower or of another architecture ({len(shapes)} tensors: {shown})."
    norms = [name for name in report.missing if _is_norm(name) and (_normed(name) in fits or name in network)]
    if norms and len(norms) >= len(network):
        return f"its norms are of another kind than the model's, or it has none: it lacks {grouped(norms, 3)}."
    if norms := [name for name in report.left_over if _is_norm(name) and _normed(name) in report.used]:
        return f"it has norms where the model has none, or others ({grouped(norms, 3)})."
    if network:
        return f"its backbone is shallower or of another architecture: it lacks {grouped(network, 3)}."
    if not any(not name.startswith("backbone.") for name in fits):
        return f"it is a backbone or a classification network only: it lacks {grouped(report.missing, 4)}."
    if pyramid := [name for name in report.missing if name.startswith("backbone.")]:
        return f"it has no feature pyramid like the model's (of a C4 model?): it lacks {grouped(pyramid, 3)}."
    if report.other_shape:
        return f"it has other channels, anchors or another number of classes ({_shapes(report, report.other_shape)})."
    if report.rows:
        return "its classes are others than the model's."
    return f"it lacks {grouped(report.missing, 4)}."


def _numbered(name: str, nested: bool) -> Iterator[tuple[str, str]]:
    """(container, number) of numbered parts, `nested` for only those within numbered parts.

    ("layer", "3"), ("layer3.", "5") and ("layer3.5.conv", "1") of layer3.5.conv1.weight.
    """
    for match in re.finditer(r"\d+", name):
        container = name[: match.start()]
        if not nested or any(character.isdigit() for character in container):
            yield container, match[0]


def _is_network(name: str) -> bool:
    """Of the backbone proper, not of its pyramid."""
    return name.startswith("backbone.") and not re.match(r"backbone\.(fpn_|simfp_|pafpn_|downsample|pan_)", name)


def _is_norm(name: str) -> bool:
    return name.endswith(_STATISTICS) or bool(re.search(r"\b(norm|bn|gn|ln)\d?\.(weight|bias)$", name))


def _normed(name: str) -> str:
    """The weight of the convolution that a norm of Detectron2 belongs to."""
    return f"{name.rpartition('.')[0].removesuffix('.norm')}.weight"


def _shapes(report: LoadReport, names: Collection[str]) -> str:
    name = next(iter(names))
    stored, expected = report.other_shape[name]
    return f"{name} is {list(stored)} in the file and {list(expected)} in the model"
