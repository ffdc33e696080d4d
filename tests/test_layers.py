"""Imports go down the layers of docs/architecture.md, never up, and no two packages import each other."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "maskrcnn_plus"
MODEL = ["backbones", "necks", "rpn", "roi", "mask_heads", "flips", "mask_rcnn"]
WORK = ["data", "runtime", "evaluation", "checkpoints", "training", "results", "inference", "export", "apps"]
LAYERS = ["weights", "zoo", "ops", "masks", *MODEL, *WORK, "__init__", "components"]


def get_layer(name: str) -> int:
    """Place of a module of the package in the list; modules beside the packages are the ground (-1)."""
    part = (name.split(".") + ["__init__"])[1]
    return LAYERS.index(part) if part in LAYERS else -1


def test_no_import_goes_up_the_layers():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        assert len(path.relative_to(PACKAGE).parts) == 1 or get_layer(module) >= 0, f"{module}: a package without layer"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: a relative import"
                names = [f"{node.module}.{each.name}" for each in node.names]
            else:
                names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            ours = [name for name in names if f"{name}.".startswith("maskrcnn_plus.")]
            wrong += [f"{module} -> {name}" for name in ours if get_layer(name) > get_layer(module)]
    assert not wrong
