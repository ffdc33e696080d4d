"""A trained checkpoint becomes a model that comes with the package."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from maskrcnn_plus import zoo
from maskrcnn_plus.checkpoints.safetensors_file import write_safetensors
from maskrcnn_plus.errors import UserError
from maskrcnn_plus.inference.predictor import Predictor

__all__ = ["MOST_BYTES", "ship"]

MOST_BYTES = 30_000_000
"""Of a file, since every installation has it."""


def ship(
    source: str,
    name: str,
    description: str = "",
    licence: str = "",
    credits: Sequence[str] = (),
    score_threshold: float | None = None,
) -> str:
    """Put the weights of a checkpoint into the package's table, in place of an earlier model of that name.

    Args:
        source: a checkpoint that describes itself; see `write_safetensors` for what is kept of it.
        name: under which it is found, `maskrcnn_plus://NAME`.
        description, licence, credits: see `ShippedModel`; what is empty is taken from the earlier model.
        score_threshold: least score of a detection, in 0..1; None keeps that of the checkpoint's config.

    Returns:
        What was written, in words.

    Raises:
        UserError: the checkpoint cannot be used, its file would be too large, or an entry is missing.
        OSError: a file cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"{name!r} is no name for a model: small letters, digits and _ are.")
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise UserError(f"The score threshold is {score_threshold}, it must be between 0 and 1.")
    table = zoo.read_table()
    earlier = table.get(name)
    about = {"description": description, "licence": licence, "credits": list(credits)}
    about = {key: value or (getattr(earlier, key) if earlier else value) for key, value in about.items()}
    if missing := [key for key, value in about.items() if not value]:
        raise UserError(f"{name} is new in the table: give its {' and '.join(missing)}.")
    path, new = zoo.FOLDER / f"{name}.safetensors", zoo.FOLDER / f".{name}.new.safetensors"
    try:
        write_safetensors(source, new, score_threshold)
        content = new.read_bytes()
        if len(content) > MOST_BYTES:
            raise UserError(
                f"{source} would take {len(content) / 1e6:.1f} MB in the package, more than {MOST_BYTES / 1e6:.0f} MB."
            )
        Predictor(str(new), device="cpu")  # every tensor of the model is there, and nothing of it needs another file
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    table[name] = zoo.ShippedModel(path.name, len(content), hashlib.sha256(content).hexdigest(), **about)
    zoo.write_table(table)
    return f"{zoo.SCHEME}{name}: {path}, {len(content) / 1e6:.1f} MB, SHA-256 {table[name].sha256}"
