"""The components of this package: those in Detectron2's registries, and all that its subpackages export."""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from typing import Any

from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
)
from torch import nn

import maskrcnn_plus

__all__ = ["REGISTRIES", "Component", "list_components"]

# Name -> registry of Detectron2, in the order in which an image flows through them.
REGISTRIES = {
    "BACKBONE": BACKBONE_REGISTRY,
    "ANCHOR_GENERATOR": ANCHOR_GENERATOR_REGISTRY,
    "RPN_HEAD": RPN_HEAD_REGISTRY,
    "PROPOSAL_GENERATOR": PROPOSAL_GENERATOR_REGISTRY,
    "ROI_BOX_HEAD": ROI_BOX_HEAD_REGISTRY,
    "ROI_MASK_HEAD": ROI_MASK_HEAD_REGISTRY,
    "ROI_HEADS": ROI_HEADS_REGISTRY,
    "META_ARCH": META_ARCH_REGISTRY,
}


@dataclass(frozen=True)
class Component:
    """A part that a config can name.

    Attributes:
        name: its name, in the registry where there is one.
        registry: name of its registry without "_REGISTRY", or None.
        path: where to import it from; the `_target_` of a LazyConfig.
        summary: first line of its docstring.
        options: argument -> its default as Python source, or None where the argument must be given.
    """

    name: str
    registry: str | None
    path: str
    summary: str
    options: dict[str, str | None]


def list_components() -> list[Component]:
    """All components of this package: registry by registry, then those in none, each group sorted by path."""
    exported = _exported()
    paths = {id(thing): path for path, thing in exported.items()}
    components = []
    for registry_name, registry in REGISTRIES.items():
        ours = [(name, thing) for name, thing in registry if thing.__module__.startswith(f"{maskrcnn_plus.__name__}.")]
        found = [
            _describe(name, registry_name, paths.get(id(thing), f"{thing.__module__}.{thing.__qualname__}"), thing)
            for name, thing in ours
        ]
        components += sorted(found, key=lambda component: component.path)
        for _, thing in ours:
            exported.pop(paths.get(id(thing)), None)
    return components + [_describe(path.rpartition(".")[2], None, path, exported[path]) for path in sorted(exported)]


def _exported() -> dict[str, Any]:
    """Path -> what the `__all__` of a subpackage names. Importing the subpackages also fills the registries."""
    exported = {}
    for module in pkgutil.iter_modules(maskrcnn_plus.__path__, f"{maskrcnn_plus.__name__}."):
        if module.ispkg:
            package = importlib.import_module(module.name)
            exported.update(
                {f"{module.name}.{name}": getattr(package, name) for name in getattr(package, "__all__", ())}
            )
    return exported


def _describe(name: str, registry: str | None, path: str, thing: Any) -> Component:
    summary = (inspect.getdoc(thing) or "").partition("\n")[0]
    return Component(name, registry, path, summary, _options(thing))


def _options(thing: Any) -> dict[str, str | None]:
    """Arguments of a function or constructor; those of the base classes too where it passes `**kwargs` on to them."""
    if not callable(thing) or (isinstance(thing, type) and issubclass(thing, Exception)):
        return {}
    if isinstance(thing, type):
        bases = (base for base in thing.__mro__ if base not in (object, nn.Module))
        functions = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    else:
        functions = [thing]
    options = {}
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            if parameter.name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                default = None if parameter.default is parameter.empty else _source(parameter.default)
                options.setdefault(parameter.name, default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return options


def _source(value: Any) -> str:
    """`repr`, but without memory addresses for functions and classes."""
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)
