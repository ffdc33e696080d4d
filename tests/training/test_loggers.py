"""Numbers of a training at Weights & Biases and MLflow: on fakes of their calls, and on themselves where they are."""

import json
import math
import sys
import types

import pytest
import tiny
from detectron2.utils.events import EventStorage

from maskrcnn_plus.errors import UserError
from maskrcnn_plus.training.loggers import build_loggers, check_loggers

CONFIG = {"train.max_iter": 6, "model._target_": "Model"}


class FakeRun:
    def __init__(self, calls, **options):
        self.calls, self.id = calls, options.get("id") or "w1"
        calls.append(("init", options))

    def log(self, data, step=None):
        self.calls.append(("log", step, data))

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def wandb(monkeypatch):
    """The calls of `wandb.init(...)` and of its run."""
    module, calls = types.ModuleType("wandb"), []
    module.init = lambda **options: FakeRun(calls, **options)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    """The calls of MLflow's fluent interface."""
    module, calls = types.ModuleType("mlflow"), []

    def start_run(run_id=None, run_name=None):
        calls.append(("start", run_id, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "m1"))

    module.set_experiment = lambda name: calls.append(("experiment", name))
    module.start_run = start_run
    module.log_dict = lambda values, file: calls.append(("dict", file, values))
    module.log_metrics = lambda metrics, step=None: calls.append(("log", step, metrics))
    module.end_run = lambda: calls.append(("end",))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return calls


def write(writers):
    """Two iterations of a training, and the end."""
    with EventStorage(0) as storage:
        for iteration in range(2):
            storage.iter = iteration
            storage.put_scalars(total_loss=2.0 - iteration, broken=math.nan)
            if iteration == 1:
                storage.put_scalar("segm/AP-a (b)é", 5.0, smoothing_hint=False)
            for writer in writers:
                writer.write()
    for writer in writers:
        writer.close()


def test_weights_and_biases_gets_what_metrics_json_gets(wandb, tmp_path):
    (tmp_path / "run").mkdir()
    write(build_loggers(["wandb"], str(tmp_path / "run"), 0, CONFIG))
    (_, options), *calls = wandb
    assert (options["name"], options["config"], options["id"]) == ("run", CONFIG, None)
    assert calls == [
        ("log", 0, {"total_loss": 2.0}),
        ("log", 1, {"total_loss": 1.5, "segm/AP-a (b)é": 5.0}),
        ("finish",),
    ]


def test_mlflow_gets_it_under_names_that_it_takes(mlflow, tmp_path):
    write(build_loggers(["mlflow"], str(tmp_path), 0, CONFIG))
    assert mlflow == [
        ("experiment", "maskrcnn_plus"),
        ("start", None, tmp_path.name),
        ("dict", "config.json", CONFIG),
        ("log", 0, {"total_loss": 2.0}),
        ("log", 1, {"total_loss": 1.5, "segm/AP-a _b__": 5.0}),
        ("end",),
    ]


def test_a_resumed_training_goes_on_with_its_runs_and_a_new_one_does_not(wandb, mlflow, tmp_path):
    names = ["wandb", "mlflow"]
    build_loggers(names, str(tmp_path), 0, CONFIG)
    assert json.loads((tmp_path / "loggers.json").read_text()) == {"wandb": "w1", "mlflow": "m1"}
    build_loggers(names, str(tmp_path), 4, CONFIG)
    assert [call[1]["id"] for call in wandb] == [None, "w1"]
    assert [call[1] for call in mlflow if call[0] == "start"] == [None, "m1"]
    (tmp_path / "loggers.json").write_text("{")
    build_loggers(names, str(tmp_path), 4, CONFIG)
    build_loggers(names, str(tmp_path), 0, CONFIG)
    assert [call[1]["id"] for call in wandb] == [None, "w1", None, None]


def test_a_service_that_fails_ends_its_log_and_no_training(mlflow, wandb, tmp_path, caplog):
    def fail(*_, **__):
        raise RuntimeError("no route to host\nmore")

    sys.modules["mlflow"].log_metrics = fail
    sys.modules["wandb"].init = fail
    writers = build_loggers(["wandb", "mlflow"], str(tmp_path), 0, CONFIG)
    write(writers)
    assert len(writers) == 1
    assert ("end",) not in mlflow
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == [
        "train.logger: no log to wandb, which says: RuntimeError: no route to host",
        "MlflowWriter ends here, the training goes on: RuntimeError: no route to host",
    ]


def test_a_missing_package_is_told_before_the_training(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'maskrcnn_plus\[wandb\]'"):
        tiny.execute(tiny.config(tmp_path / "run", logger=["wandb"]))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"train\.logger.* 'wandb', 'mlflow'"):
        tiny.execute(tiny.config(tmp_path / "run", logger=["wandbb"]))
    check_loggers([])


def test_a_training_logs_to_a_service(wandb, tmp_path):
    tiny.execute(tiny.config(tmp_path / "run", logger=["wandb"], eval_period=3))
    logged = {name for call in wandb if call[0] == "log" for name in call[2]}
    assert {"total_loss", "lr", "a/mean"} <= logged
    assert wandb[-1] == ("finish",)
    assert wandb[0][1]["config"]["train.max_iter"] == 6


def test_weights_and_biases_itself_offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(build_loggers(["wandb"], str(tmp_path), 0, CONFIG))
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_mlflow_itself_in_a_folder(monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    writers = build_loggers(["mlflow"], str(tmp_path), 0, CONFIG)
    write(writers)
    run = mlflow.get_run(writers[0].run_id)
    assert run.data.metrics == {"total_loss": 1.5, "segm/AP-a _b__": 5.0}
    assert run.info.status == "FINISHED"
