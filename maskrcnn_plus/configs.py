"""The shipped configs as modules: `from maskrcnn_plus.configs.common.train import train` in a LazyConfig of one's own.

Each import gives a fresh copy as `LazyConfig.load` makes it, with which a config may do as it likes. The files are
those of `maskrcnn_plus.config.list_configs` and the parts in `common/`; they lie in this package, or in a source
checkout in `configs/` beside it.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from detectron2.config import LazyConfig
from omegaconf import DictConfig

from maskrcnn_plus.config import config_folder

__path__: list[str] = []  # makes it a package, whose modules the finder below finds


class _Finder(MetaPathFinder, Loader):
    """A folder becomes a package, a file a module whose attributes are loaded each time they are asked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(f"{__name__}."):
            return None
        place = config_folder().joinpath(*name.split(".")[2:])
        if place.is_dir():
            return ModuleSpec(name, self, is_package=True)
        file = place.with_name(f"{place.name}.py")
        return ModuleSpec(name, self, origin=str(file)) if file.is_file() else None

    def exec_module(self, module: ModuleType) -> None:
        file = module.__spec__.origin
        if file is None:  # a folder
            return

        def load(name: str) -> object:
            if name == "__all__":
                return list(_load(file))
            if name.startswith("__"):
                raise AttributeError(name)
            parts = _load(file)
            if name in parts:
                part = copy.deepcopy(parts[name])
                part._set_parent(None)
                return part
            try:
                return LazyConfig.load(file, name)  # of another type than a config
            except KeyError as error:
                if error.args != (name,):
                    raise
                raise AttributeError(f"{file} has no {name!r}") from None

        module.__file__ = file
        module.__getattr__ = load


@functools.cache
def _load(file: str) -> DictConfig:
    """All parts of a shipped config, loaded once a process: a config imports several of them one by one."""
    return LazyConfig.load(file)


sys.meta_path.insert(0, _Finder())  # before that of an editable installation, which would run the files as modules
