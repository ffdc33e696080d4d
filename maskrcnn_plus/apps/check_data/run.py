"""The job of `tools/check_data.py`: look through, tell, draw, repair."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from maskrcnn_plus.apps.check_data.diagnosis import diagnose
from maskrcnn_plus.apps.check_data.repair import refuse_output, write_repaired
from maskrcnn_plus.apps.check_data.report import write_data_report
from maskrcnn_plus.apps.check_data.terminal import describe
from maskrcnn_plus.data.formats import ReadOptions
from maskrcnn_plus.errors import printable


def check_data(
    path: Path,
    name: str | None = None,
    *,
    val: Path | None = None,
    options: ReadOptions | None = None,
    report: Path | None = None,
    fix: Path | None = None,
) -> int:
    """Look through a folder of annotations and print what was found.

    Args:
        path: folder or annotation file.
        name: its format; None finds it.
        val: a second folder, of images for validation.
        options: how the annotations are read.
        report: the HTML file to write; None for none.
        fix: a new folder for a clean COCO data set; None for none.

    Returns:
        1 where something would stop a training, else 0.

    Raises:
        DataError: the annotations cannot be read at all, or `fix` cannot be written.
        OSError: `report` cannot be written.
    """
    if fix is not None:
        refuse_output(path, fix)
    diagnosis = diagnose(path, name, val, options, _show_progress)
    print(printable(describe(diagnosis)))
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_data_report(report, diagnosis)
        print(f"\nThe page is {report}.")
    if fix is not None:
        print("\n" + "\n".join(write_repaired(diagnosis, fix)))
    return 1 if diagnosis.num_problems else 0


def _show_progress(total: int) -> Callable[[], object]:
    """A bar of a terminal; what is remembered is not read, and shows none."""
    bar = tqdm(total=total, unit="image", disable=None, leave=False, delay=0.5)

    def step() -> None:
        bar.update()
        if bar.n >= total:
            bar.close()

    return step
