"""The guides: their commands are understood by the tools, and their site is whole and stands alone."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
GUIDES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TOOL = re.compile(r"(?:python tools/|maskrcnn-plus )(\w+)(?:\.py)?$")


def list_commands(text: str) -> list[tuple[str, list[str]]]:
    """The tools that the blocks of a guide run, with their arguments."""
    found = []
    blocks = [block for language, block in BLOCK.findall(text) if language in ("", "bash", "sh")]
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        if re.search(r"(tools/|maskrcnn-plus )\w", line) and "..." not in line:  # not the pattern of a command
            for part in re.split(r"&&|[|>]", line):
                words = [word for word in shlex.split(part, comments=True) if word != "&"]
                for number in range(1, len(words)):
                    if tool := TOOL.fullmatch(" ".join(words[number - 1 : number + 1])):
                        found.append((tool[1], words[number + 1 :]))
    return found


def test_commands_are_found_in_a_guide():
    text = (
        "A\n```\npython tools/predict.py --weights a \\\n    --input b  # c\ncd x && A=1 maskrcnn-plus train y=1\n```\n"
    )
    assert list_commands(text) == [("predict", ["--weights", "a", "--input", "b"]), ("train", ["y=1"])]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_tools_understand_the_commands_of_the_guide(guide: Path, capsys: pytest.CaptureFixture):
    for tool, arguments in list_commands(guide.read_text(encoding="utf-8")):
        name = {"train": "train_net", "check": "check_data"}.get(tool, tool)
        parse = importlib.import_module(name).parse_arguments
        try:
            parse(arguments)
        except SystemExit:
            pytest.fail(f"{guide.name}: {tool} {' '.join(arguments)}\n{capsys.readouterr().err}")


def test_the_job_array_deals_out_all_shards_and_is_merged_whatever_became_of_a_job():
    """Run with SLURM's variables, as its last job, with a `python` that tells its arguments."""
    script = REPOSITORY / "docs" / "predict_array.slurm"
    text = script.read_text(encoding="utf-8")
    (last,) = re.findall(r"#SBATCH --array=1-(\d+)", text)
    tell = f'python() {{ printf "%s\\n" "$OMP_NUM_THREADS" "$@"; }}; {text.replace("exec python", "python")}'
    slurm = {"SLURM_ARRAY_TASK_ID": last, "SLURM_CPUS_PER_TASK": "4"}
    done = subprocess.run(
        ["bash", "-euc", tell], env={**os.environ, **slurm}, capture_output=True, text=True, check=True
    )
    threads, tool, *arguments = done.stdout.splitlines()
    assert (threads, tool) == ("4", "tools/predict.py")
    parse = importlib.import_module("predict").parse_arguments
    args = parse(arguments)
    assert args.shard == f"{last}/{last}"
    # A job with a file that cannot be predicted ends with exit code 1: `afterok` would wait for ever.
    dependency, merge = re.search(r'--dependency=(\w+):\$array --wrap "python tools/predict.py (.*)"', text).groups()
    assert dependency == "afterany"
    assert parse(merge.split()).output == args.output


class Loaded(HTMLParser):
    """What a page loads as it opens."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(values.get("src"))
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(values.get("href"))


def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path: Path):
    pytest.importorskip("material", reason="mkdocs-material is not installed (the extra dev)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    settings = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=REPOSITORY, env=settings, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr  # a missing page, picture or anchor is an error
    pages = {path.stem for path in tmp_path.glob("*.html")}
    assert pages == {"404", "index", *(guide.stem for guide in GUIDES[1:])}
    for page in tmp_path.glob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert not [each for each in loaded.addresses if each and re.match(r"(https?:)?//", each)], page.name
