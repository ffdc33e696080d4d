"""The configs of this package and of Detectron2's model zoo by name, and this package's keys for yacs configs."""

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import detectron2
from detectron2.config import CfgNode, LazyConfig, get_cfg
from omegaconf import DictConfig, OmegaConf

import maskrcnn_plus.learning_rate
import maskrcnn_plus.resolvers
from maskrcnn_plus.config_rules import check_config
from maskrcnn_plus.overrides import apply_overrides

__all__ = [
    "add_config",
    "config_folder",
    "detectron2_config",
    "find_config",
    "get_config",
    "list_configs",
    "load_config",
    "skip_pretrained",
    "with_defaults",
]


def find_config(name: str) -> str:
    """Path of a config file: one of the user's, or a shipped one by its name.

    Args:
        name: path of a LazyConfig file, or a name as `list_configs` gives it, with or without ".py".

    Raises:
        ValueError: neither exists.
    """
    if Path(name).is_file():
        return str(name)
    known = list_configs()
    wanted = str(name).removesuffix(".py")
    if wanted not in known:
        close = difflib.get_close_matches(wanted.removeprefix("configs/"), known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"There is no config file and no shipped config {name!r}.{hint} Shipped: {', '.join(known)}.")
    return str(config_folder() / f"{wanted}.py")


def get_config(name: str) -> DictConfig:
    """Load a LazyConfig.

    Args:
        name: as for `find_config`, e.g. "nuclei/mask_rcnn_lite0_fpn". A file of the user's can import the modules of
            its own folder, as a script can, which is put at the end of `sys.path` for that.

    Returns:
        The config, a fresh copy at every call.

    Raises:
        ValueError: there is no config of that name.
        FileNotFoundError: the configs are not installed.
    """
    path = find_config(name)
    folder = str(Path(path).resolve().parent)
    if Path(name).is_file() and folder not in sys.path:
        sys.path.append(folder)
    return LazyConfig.load(path)


def load_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A config with the `key=value` of a command line; a `train` without some keys, as Detectron2's, gets our defaults.

    Args:
        name: as for `find_config`.
        overrides: as for `maskrcnn_plus.overrides.apply_overrides`.

    Raises:
        ValueError: there is no config of that name, an override cannot be applied, or a value cannot be.
    """
    cfg = get_config(name)
    if OmegaConf.is_dict(cfg.get("train")):
        cfg.train = OmegaConf.merge(LazyConfig.load(str(config_folder() / "common" / "train.py")).train, cfg.train)
    cfg = apply_overrides(cfg, overrides)
    check_config(cfg)
    return cfg


def list_configs() -> list[str]:
    """Names of the shipped configs, sorted: "domain/experiment" without ".py".

    Folders named "common" hold the parts from which configs are made, and are left out like names that begin with "_".

    Raises:
        FileNotFoundError: the configs are not installed.
    """
    folder = config_folder()
    paths = [path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py")]
    return sorted(p.as_posix() for p in paths if not any(part == "common" or part.startswith("_") for part in p.parts))


def detectron2_config(name: str) -> DictConfig | CfgNode:
    """Load a config of Detectron2's model zoo.

    As `detectron2.model_zoo.get_config`, whose module needs `pkg_resources` in Detectron2's development head, which
    setuptools no longer has.

    Args:
        name: e.g. "common/models/mask_rcnn_fpn.py" or "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml".

    Returns:
        Of a ".py" the LazyConfig, of a ".yaml" the yacs config, fresh at every call.

    Raises:
        FileNotFoundError: this Detectron2 has no such config.
    """
    path = Path(detectron2.__file__).parent / "model_zoo" / "configs" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"Detectron2's model zoo has no config {name!r}: there is no {path}. Its setup.py puts the configs there: "
            "install Detectron2, or build it in place, with that."
        )
    if path.suffix == ".py":
        return LazyConfig.load(str(path))
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


def config_folder() -> Path:
    """Where the shipped configs are: in the installed package, else `configs/` of the checkout that this file is in.

    Raises:
        FileNotFoundError: in neither.
    """
    folders = [Path(place) / "configs" for place in maskrcnn_plus.__path__]
    checkout = Path(__file__).resolve().parents[1]
    # In an installed tree the parent folder is site-packages, where a folder named configs is somebody else's.
    if (checkout / "pyproject.toml").is_file():
        folders.append(checkout / "configs")
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError("the configs of maskrcnn_plus are not installed: reinstall the package")


def skip_pretrained(cfg: DictConfig) -> None:
    """Let the backbone start from random numbers, in place: for a model that is loaded as a whole afterwards.

    Spares reading the backbone's own weights, which a machine that only predicts may not have.
    """
    for key in ("model.backbone", "model.backbone.bottom_up", "model.backbone.net"):
        node = OmegaConf.select(cfg, key)
        if isinstance(node, DictConfig) and "weights" in node:
            node.weights = ""


def get_score_threshold(cfg: DictConfig, chosen: float | None = None) -> float:
    """The least score of a detection that is shown: `chosen`, else the config's `dataset.score_threshold`, else 0.5."""
    threshold = OmegaConf.select(cfg, "dataset.score_threshold") if chosen is None else chosen
    return 0.5 if threshold is None else float(threshold)


def add_config(cfg: CfgNode) -> None:
    """Adds this package's keys to a yacs config, in place; call it before merging a file that sets them.

    A config without them builds the parts with the defaults below.

    `MODEL.TIMM` configures `TimmBackbone` (MODEL.BACKBONE.NAME), together with Detectron2's MODEL.BACKBONE.FREEZE_AT;
    `MODEL.VIT` configures `PlainViT`, also below `SimpleFeaturePyramid`; `MODEL.CASCADE_RPN`, `MODEL.IOU_AWARE_RPN`,
    `MODEL.BOUNDARY_MASK_HEAD` and `MODEL.MASK_SCORING` the parts of those names; further keys of `MODEL.ROI_HEADS` are
    of `DenseROIHeads`, and `MODEL.DENSE_MASKS`, `MASK_PASTING`, `MAX_COVERED`, `MIN_MASK_AREA` and
    `FLIPS` are of `MaskRCNNPlus`. Their arguments are explained there.
    """
    # of MaskRCNNPlus; False: results have pred_masks_rle alone, without pred_masks, which Detectron2's tools read
    cfg.MODEL.DENSE_MASKS = True
    # "detectron2" or "torchvision"
    cfg.MODEL.MASK_PASTING = "detectron2"
    # 1 and 0: no detection is dropped because better ones cover its mask, or for its mask's area
    cfg.MODEL.MAX_COVERED = 1.0
    cfg.MODEL.MIN_MASK_AREA = 0
    # orientations in which an image is seen: 1, 2 or 4
    cfg.MODEL.FLIPS = 1

    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "resnet50"
    # "" random, "timm" download, "package" installed package, or a file
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # "BN" or "FrozenBN"
    cfg.MODEL.TIMM.NORM = "BN"
    # further arguments of timm.create_model by their own names
    cfg.MODEL.TIMM.OPTIONS = CfgNode(new_allowed=True)

    cfg.MODEL.VIT = CfgNode()
    cfg.MODEL.VIT.NAME = "vit_base_patch16_224.mae"
    # "" random, "timm" download, or a file
    cfg.MODEL.VIT.WEIGHTS = ""
    cfg.MODEL.VIT.PATCH_SIZE = 16
    # 0: every block is global
    cfg.MODEL.VIT.WINDOW_SIZE = 14
    # None: the last block of each quarter
    cfg.MODEL.VIT.GLOBAL_BLOCKS = None
    cfg.MODEL.VIT.KEEP_PREFIX_TOKENS = True
    cfg.MODEL.VIT.FINAL_NORM = False
    cfg.MODEL.VIT.DROP_PATH_RATE = 0.0
    # 0 nothing, 1 the embeddings, 1 + k the first k blocks as well
    cfg.MODEL.VIT.FREEZE_AT = 0
    cfg.MODEL.VIT.ACTIVATION_CHECKPOINTING = False
    # further arguments of timm.create_model by their own names
    cfg.MODEL.VIT.OPTIONS = CfgNode(new_allowed=True)

    # the rest is MODEL.RPN's
    cfg.MODEL.CASCADE_RPN = CfgNode()
    # side of an anchor in strides
    cfg.MODEL.CASCADE_RPN.ANCHOR_SCALE = 8.0
    cfg.MODEL.CASCADE_RPN.INITIAL_BBOX_REG_WEIGHTS = (10.0, 10.0, 2.0, 2.0)
    cfg.MODEL.CASCADE_RPN.BBOX_REG_WEIGHTS = (20.0, 20.0, 10.0, 10.0)
    cfg.MODEL.CASCADE_RPN.CENTER_RATIO = 0.2
    cfg.MODEL.CASCADE_RPN.IGNORE_RATIO = 0.5
    cfg.MODEL.CASCADE_RPN.MIN_POSITIVE_IOU = 0.3
    # "iou" or "giou"
    cfg.MODEL.CASCADE_RPN.BBOX_REG_LOSS_TYPE = "iou"
    cfg.MODEL.CASCADE_RPN.INITIAL_BBOX_REG_LOSS_WEIGHT = 7.0
    cfg.MODEL.CASCADE_RPN.CLS_LOSS_WEIGHT = 0.7
    cfg.MODEL.CASCADE_RPN.BBOX_REG_LOSS_WEIGHT = 7.0

    cfg.MODEL.IOU_AWARE_RPN = CfgNode()
    # "iou" or "centerness"
    cfg.MODEL.IOU_AWARE_RPN.QUALITY = "iou"
    # what ranks the proposals: "product", "quality" or "objectness"
    cfg.MODEL.IOU_AWARE_RPN.SCORE = "product"
    cfg.MODEL.IOU_AWARE_RPN.LOSS_TYPE = "bce"
    cfg.MODEL.IOU_AWARE_RPN.SMOOTH_L1_BETA = 0.0
    cfg.MODEL.IOU_AWARE_RPN.IOU_THRESHOLD = 0.3
    cfg.MODEL.IOU_AWARE_RPN.BATCH_SIZE_PER_IMAGE = 256
    # multiplied by MODEL.RPN.LOSS_WEIGHT
    cfg.MODEL.IOU_AWARE_RPN.LOSS_WEIGHT = 1.0

    # 0: masks are learned from all positive RoIs
    cfg.MODEL.ROI_HEADS.MASK_BATCH_SIZE_PER_IMAGE = 0
    cfg.MODEL.ROI_HEADS.SOFT_MASK_TARGETS = False
    # "", "linear" or "gaussian"
    cfg.MODEL.ROI_HEADS.SOFT_NMS_METHOD = ""
    cfg.MODEL.ROI_HEADS.SOFT_NMS_SIGMA = 0.5

    # the rest is MODEL.ROI_MASK_HEAD's
    cfg.MODEL.BOUNDARY_MASK_HEAD = CfgNode()
    cfg.MODEL.BOUNDARY_MASK_HEAD.NUM_CONV = 2
    cfg.MODEL.BOUNDARY_MASK_HEAD.STRIDE = 1
    cfg.MODEL.BOUNDARY_MASK_HEAD.NUM_UPSAMPLES = 1
    cfg.MODEL.BOUNDARY_MASK_HEAD.MASK_LOSS_WEIGHT = 1.0
    cfg.MODEL.BOUNDARY_MASK_HEAD.BOUNDARY_LOSS_WEIGHT = 1.0
    cfg.MODEL.BOUNDARY_MASK_HEAD.DICE_WEIGHT = 1.0

    cfg.MODEL.MASK_SCORING = CfgNode()
    # the mask head that is scored
    cfg.MODEL.MASK_SCORING.MASK_HEAD = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.MASK_SCORING.NUM_CONV = 4
    cfg.MODEL.MASK_SCORING.CONV_DIM = 256
    cfg.MODEL.MASK_SCORING.NUM_FC = 2
    cfg.MODEL.MASK_SCORING.FC_DIM = 1024
    cfg.MODEL.MASK_SCORING.NORM = ""
    cfg.MODEL.MASK_SCORING.LOSS_WEIGHT = 1.0
    cfg.MODEL.MASK_SCORING.MIN_IOU = 0.0
    cfg.MODEL.MASK_SCORING.RESCORE = True


def with_defaults(cfg: CfgNode, add: Callable[[CfgNode], None] = add_config) -> CfgNode:
    """A copy of a yacs config with the keys that it lacks, for `from_config` of parts that read keys of their own.

    Programs that call `get_cfg()` themselves and are given the names of parts have no place for `add_config`.

    Args:
        cfg: of `get_cfg()`, with or without the keys; it stays as it is.
        add: adds keys with their defaults to a config, in place.
    """
    complete = cfg.clone()
    complete.defrost()
    add(complete)
    _overwrite(complete, cfg)
    return complete


def _overwrite(target: CfgNode, source: CfgNode) -> None:
    for key, value in source.items():
        if isinstance(value, CfgNode) and isinstance(target.get(key), CfgNode):
            _overwrite(target[key], value)
        else:
            target[key] = value
