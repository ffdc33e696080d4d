"""What `mkdocs.yml` does to the guides: the README is the first page, and links into the sources become their text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

SOURCE_LINK = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")  # of a file beside docs/, which the site does not have


def on_files(files: Files, config: Any) -> Files:
    """Add the README as the first page."""
    readme = Path(config.config_file_path).parent / "README.md"
    text = readme.read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Give the text of a page without links that leave the site's folder."""
    return SOURCE_LINK.sub(r"\1", markdown)
