"""Shipped configs are loaded once, and copied."""

import copy
import functools

import pytest
from detectron2.config import LazyConfig


@pytest.fixture(autouse=True, scope="session")
def _load_once():
    original = LazyConfig.load
    load = functools.cache(original)

    def load_copy(path, keys=None):
        return copy.deepcopy(load(path, keys)) if "/configs/" in path else original(path, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LazyConfig, "load", staticmethod(load_copy))
        yield
