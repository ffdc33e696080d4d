"""A finished run of `tiny`, and the same one stopped."""

import shutil

import pytest
import tiny


@pytest.fixture(scope="module", autouse=True)
def _quick_start():
    """Detectron2 describes the machine at the start of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detectron2.engine.defaults.collect_env_info", str)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 6 iterations with all its checkpoints and an evaluation after each second one."""
    output = tmp_path_factory.mktemp("finished") / "run"
    tiny.execute(tiny.config(output, eval_period=2, checkpointer={"period": 1, "max_to_keep": 0}))
    return output


@pytest.fixture
def stopped(finished, tmp_path):
    """The same run as it was after 4 iterations: its checkpoints are those of the iterations 0 to 3."""
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    for name in ("model_0000004.pth", "model_final.pth", "log.txt"):
        (output / name).unlink(missing_ok=True)
    (output / "last_checkpoint").write_text("model_0000003.pth")
    return output
