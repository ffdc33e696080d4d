"""XML of annotation tools, without entities and addresses of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse, parse

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.files import damaged
from maskrcnn_plus.special_files import refuse_special_file

_ERRORS = (ParseError, DefusedXmlException, OSError, ValueError, LookupError)


def read_xml(path: Path) -> Any:
    """Root element of an XML file.

    Raises:
        DataError: naming the file that is no XML, or has entities.
    """
    try:
        refuse_special_file(path)
        return parse(path).getroot()
    except _ERRORS as error:
        raise DataError(f"{path} cannot be read as XML ({error}). Export it again.") from error


def peek_tags(path: Path, count: int = 100) -> list[str]:
    """Names of the first elements of an XML file, the outermost first; none of a file that cannot be read."""
    tags: list[str] = []
    try:
        refuse_special_file(path)
        for _, element in iterparse(path, events=("start",)):
            tags.append(element.tag)
            if len(tags) == count:
                break
    except _ERRORS as error:
        damaged(path, DataError(f"{path} cannot be read as XML ({error}). Export it again."))
        return []
    return tags
