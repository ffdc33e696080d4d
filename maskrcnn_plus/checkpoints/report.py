"""What loading weights did, tensor by tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

Shape = tuple[int, ...]


@dataclass
class LoadReport:
    """What became of every tensor of the model, and of every tensor of the file.

    A tensor of the model is in exactly one of `loaded`, `transformed`, `rows`, `other_shape`, `missing` and `own`; a
    tensor of the file in exactly one of `used` and `left_over`. `str()` is a summary of a few lines, `table()` all.

    Attributes:
        source: where the weights came from, as the user wrote it.
        format: in which format the file was recognised to be.
        loaded: tensors of the model that were copied as they are in the file.
        transformed: tensors that were copied after some change -> what was done, in words.
        rows: tensors of the class heads of which some rows were copied, by the names of the classes -> which rows.
            Their other rows keep the values that the model was built with.
        other_shape: tensors left as the model was built, as they have another shape -> (shape in the file, in the
            model).
        missing: tensors left as the model was built, as the file has nothing for them.
        own: missing too, but of no consequence: index tables and counters, which the model makes itself.
        used: tensors of the file that went into the model, in whole or in part.
        left_over: tensors of the file that did not.
        fraction: of the numbers in the parameters and running statistics outside `roi_heads.`, those that were loaded;
            where the file is a bare backbone, of the backbone's.
        tensor_fraction: the same, counting tensors: norms count here although they are small.
    """

    source: str
    format: str
    loaded: list[str] = field(default_factory=list)
    transformed: dict[str, str] = field(default_factory=dict)
    rows: dict[str, str] = field(default_factory=dict)
    other_shape: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    fraction: float = 0.0
    tensor_fraction: float = 0.0

    @property
    def incomplete(self) -> list[str]:
        """Tensors of the model that did not come from the file as a whole, without `own`."""
        return [*self.rows, *self.other_shape, *self.missing]

    def __str__(self) -> str:
        complete = len(self.loaded) + len(self.transformed)
        total = complete + len(self.incomplete)
        lines = [
            f"{self.source} ({self.format}): {complete} of {total} tensors loaded, "
            f"{self.fraction:.1%} of the parameters outside the RoI heads"
        ]
        for words, names in (
            ("changed in loading", self.transformed),
            ("loaded in part, by the names of the classes", self.rows),
            ("of another shape, initialised anew", self.other_shape),
            ("not in the file, initialised anew", self.missing),
            ("left over in the file", [n for n in self.left_over if not n.endswith("num_batches_tracked")]),
        ):
            if names:
                lines.append(f"  {len(names)} {words}: {grouped(names)}")
        return "\n".join(lines)

    def table(self) -> str:
        """The full report: a line for every tensor of the model and of the file."""
        state = dict.fromkeys(self.loaded, "loaded")
        state |= {name: f"loaded: {how}" for name, how in self.transformed.items()}
        state |= {name: f"in part: {rows}" for name, rows in self.rows.items()}
        state |= {
            name: f"initialised anew: shape {list(file)} in the file, {list(model)} in the model"
            for name, (file, model) in self.other_shape.items()
        }
        state |= dict.fromkeys(self.missing, "initialised anew: missing in the file")
        state |= dict.fromkeys(self.own, "made by the model itself")
        of_file = dict.fromkeys(self.used, "used") | dict.fromkeys(self.left_over, "left over")
        return "\n".join([str(self), *_section("Model", state), *_section("File", of_file), ""])


def grouped(names: Collection[str], limit: int = 6) -> str:
    """Names in a short form: "backbone.bottom_up.res2 (30), backbone.fpn_lateral2.weight"."""
    groups = _split("", names)
    # The largest groups are told apart further as long as there is room.
    open_groups = set(groups)
    while open_groups:
        largest = max(open_groups, key=lambda prefix: len(groups[prefix]))
        open_groups.remove(largest)
        parts = _split(largest, groups[largest])
        if largest not in parts and len(groups) - 1 + len(parts) <= limit:
            groups = {
                k: v
                for prefix, found in groups.items()
                for k, v in (parts if prefix == largest else {prefix: found}).items()
            }
            open_groups |= set(parts)
    shown = [
        f"{prefix} ({len(found)})" if len(found) > 1 else found[0] for prefix, found in list(groups.items())[:limit]
    ]
    return ", ".join(shown) + (", ..." if len(groups) > limit else "")


def _split(prefix: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Names that begin with `prefix`, by their first components up to one more than it has."""
    depth = prefix.count(".") + 2 if prefix else 1
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    return groups


def _section(title: str, states: dict[str, str]) -> list[str]:
    width = max(map(len, states), default=0)
    return ["", f"{title}: {len(states)} tensors", *(f"  {name:<{width}}  {state}" for name, state in states.items())]
