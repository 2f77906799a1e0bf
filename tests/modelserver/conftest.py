"""Real models, real servers: forked from one warm parent per session, so that each costs little."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

WAIT_SECONDS = 60.0

#: Models that no library ships: they wait as long as a row says, and fail in named ways.
STRANGE_MODELS = '''
import os
import random
import time

import numpy


class Sleeper:
    """A row is [seconds, number]; the answer is the number. A negative one is refused, 13 is a defect."""

    n_features_in_ = 2

    def predict(self, rows):
        if (rows[:, 1] < 0).any():
            raise ValueError("negative numbers are not taken")
        if (rows[:, 1] == 13).any():
            raise RuntimeError("thirteen")
        time.sleep(float(rows[:, 0].max()) if rows[:, 0].max() < 5 else 0.0)
        return rows[:, 1]


class Unfathomable:
    """Takes nothing that could be guessed."""

    def predict(self, rows):
        if list(rows.ravel()) != ["open sesame"]:
            raise ValueError("that is not the word")
        return [1]


class Broken:
    """Loads, and then fails whatever it gets."""

    n_features_in_ = 2

    def predict(self, rows):
        raise RuntimeError("the model is broken")


class SlowLoader(Sleeper):
    """Loads only when the file `go` appears in its server's working directory."""

    def __setstate__(self, state):
        while not os.path.exists("go"):
            time.sleep(0.01)

    def __getstate__(self):
        return {"state": 1}


class Dice:
    """Answers with chance."""

    n_features_in_ = 1

    def predict(self, rows):
        return numpy.random.random(3) + random.random()


class Greedy:
    """Takes a gigabyte when it is loaded."""

    n_features_in_ = 1

    def predict(self, rows):
        return rows[:, 0]

    def __setstate__(self, state):
        self.block = bytearray(1 << 30)

    def __getstate__(self):
        return {"state": 1}
'''


def wait_until(ready: Callable[[], Any], what: str) -> Any:
    """Poll until `ready` gives something true; fail with `what` after a generous deadline."""
    deadline = time.monotonic() + WAIT_SECONDS
    pause = threading.Event()
    while time.monotonic() < deadline:
        value = ready()
        if value:
            return value
        pause.wait(0.01)
    raise AssertionError(f"did not happen: {what}")


class Server:
    """One model server under test: its folder, process and a client."""

    def __init__(
        self, folder: Path, config: dict[str, Any], pid: int, notifications: socket.socket | None
    ) -> None:
        self.folder = folder
        self.config = config
        self.pid = pid
        self.notifications = notifications
        self.name = str(config["name"])
        address = str(config["address"])
        if address.startswith("unix:"):
            transport = httpx.HTTPTransport(uds=address.removeprefix("unix:"))
            self.client = httpx.Client(transport=transport, base_url="http://model", timeout=WAIT_SECONDS)
        else:
            self.client = httpx.Client(base_url=f"http://{address}", timeout=WAIT_SECONDS)

    def status(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        except FileNotFoundError:
            return {"state": "absent"}
        return content

    def wait_for(self, *states: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            status = self.status()
            return status if status["state"] in states else None

        try:
            found: dict[str, Any] = wait_until(reached, f"{self.name} is {' or '.join(states)}")
        except AssertionError as error:
            raise AssertionError(f"{error}; status {self.status()}; log:\n{self.log()}") from None
        return found

    def wait_for_exit(self) -> dict[str, Any]:
        path = self.folder / "exit.json"
        record: dict[str, Any] = json.loads(
            wait_until(lambda: path.exists() and path.read_text(), "an exit record")
        )
        return record

    def log(self) -> str:
        path = self.folder / "server.log"
        return path.read_text() if path.exists() else ""

    def alive(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()

    def ended(self) -> bool:
        return not self.alive()

    def stop(self) -> None:
        self.client.close()
        if self.alive():
            os.kill(self.pid, signal.SIGTERM)

    def predict(self, instances: Any, **more: Any) -> httpx.Response:
        return self.client.post(f"/v1/models/{self.name}:predict", json={"instances": instances, **more})

    def infer(self, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
        return self.client.post(f"/v2/models/{self.name}/infer", json={"inputs": list(inputs), **more})


class ForkServer:
    """A client of the warm parent's control socket."""

    def __init__(self, folder: Path, formats: str, python_path: Path) -> None:
        self.path = folder / "control"
        environment = {**os.environ, "PYTHONPATH": str(python_path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inferplane.modelserver.forkserver", str(self.path), "--preload", formats],
            env=environment,
        )
        self._socket = wait_until(self._connect, "the warm parent listens")
        self._answers = self._socket.makefile("r")

    def _connect(self) -> socket.socket | None:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(str(self.path))
        except OSError:
            client.close()
            return None
        return client

    def ask(self, request: dict[str, Any], *descriptors: int) -> dict[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        socket.send_fds(self._socket, [line], list(descriptors))
        answer: dict[str, Any] = json.loads(self._answers.readline())
        return answer

    def close(self) -> None:
        if self.process.poll() is None:
            self.ask({"op": "shutdown"})
        self._answers.close()
        self._socket.close()
        self.process.wait(WAIT_SECONDS)


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], Any], str], Any]:
    return wait_until


@pytest.fixture(scope="session")
def strange_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module `strange_models`, for the Python path of servers."""
    folder = tmp_path_factory.mktemp("strange")
    (folder / "strange_models.py").write_text(STRANGE_MODELS)
    return folder


@pytest.fixture(scope="session")
def forkserver(tmp_path_factory: pytest.TempPathFactory, strange_models: Path) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path_factory.mktemp("fork"), "sklearn,xgboost,lightgbm,onnx", strange_models)
    yield server
    server.close()


@pytest.fixture(scope="session")
def make_forkserver(
    tmp_path_factory: pytest.TempPathFactory, strange_models: Path
) -> Iterator[Callable[[str], ForkServer]]:
    """More warm parents, for tests that end them."""
    made: list[ForkServer] = []

    def make(formats: str) -> ForkServer:
        made.append(ForkServer(tmp_path_factory.mktemp("fork"), formats, strange_models))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture(scope="session")
def launch(
    tmp_path_factory: pytest.TempPathFactory, forkserver: ForkServer
) -> Iterator[Callable[..., Server]]:
    """`launch(format, path, **config)` forks a server and does not wait for it."""
    started: list[Server] = []

    def start(model_format: str, path: Path, *, parent: ForkServer = forkserver, **more: Any) -> Server:
        folder = tmp_path_factory.mktemp("r")
        config = {
            "name": "model",
            "format": model_format,
            "path": str(path),
            "address": f"unix:{folder}/s",
            "status_file": str(folder / "status.json"),
            **more,
        }
        (folder / "config.json").write_text(json.dumps(config))
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            answer = parent.ask(
                {
                    "config_path": str(folder / "config.json"),
                    "log_path": str(folder / "server.log"),
                    "env": {"LANG": "C.UTF-8"},
                    "cwd": str(folder),
                },
                lock,
            )
        finally:
            os.close(lock)
        server = Server(folder, config, answer["pid"], None)
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()
    for server in started:
        wait_until(server.ended, "every server ends")


@pytest.fixture(scope="session")
def serving(launch: Callable[..., Server], model_files: Path) -> Callable[..., Server]:
    """`serving("iris")`: a ready server for one of the stored models, started once a session."""
    running: dict[str, Server] = {}

    def get(name: str) -> Server:
        if name not in running:
            model_format, file = STORED[name]
            running[name] = launch(
                model_format, model_files / file, name=name, aliases=[f"{name}-alias"], version="3"
            )
            running[name].wait_for("ready", "failed")
            assert running[name].status()["state"] == "ready", running[name].log()
        return running[name]

    return get


STORED = {
    "iris": ("sklearn", "iris.joblib"),
    "forest": ("sklearn", "forest.joblib"),
    "diabetes": ("sklearn", "diabetes.pkl"),
    "people": ("sklearn", "people.joblib"),
    "text": ("sklearn", "text.pickle"),
    "histogram": ("sklearn", "histogram.joblib"),
    "words": ("sklearn", "words.joblib"),
    "framed": ("sklearn", "framed.joblib"),
    "sleeper": ("sklearn", "sleeper.pkl"),
    "boosted": ("xgboost", "boosted.json"),
    "raw-boosted": ("xgboost", "raw.ubj"),
    "light": ("lightgbm", "light.txt"),
    "onnx": ("onnx", "iris.onnx"),
    "onnx-plain": ("onnx", "plain.onnx"),
    "onnx-people": ("onnx", "people.onnx"),
}


@pytest.fixture(scope="session")
def people() -> Any:
    """A table with numbers, strings and holes, and what to learn from it."""
    import pandas as pd

    return pd.DataFrame(
        {
            "age": [25.0, 32.0, 47.0, np.nan, 51.0, 38.0, 29.0, 60.0],
            "city": ["Oslo", "Rome", "Rome", "Oslo", "Lima", "Lima", "Oslo", "Rome"],
            "visits": [1, 4, 2, 8, 5, 7, 3, 6],
        }
    ), [0, 1, 0, 1, 1, 0, 0, 1]


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory, strange_models: Path, people: Any) -> Path:
    """Every model that tests serve, trained once."""
    folder = tmp_path_factory.mktemp("models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own, while they train
        _train_sklearn(folder, people)
        _train_boosters(folder)
        _train_onnx(folder)
        _pickle_strange(folder, strange_models)
    return folder


def _train_sklearn(folder: Path, people: Any) -> None:
    import pickle

    import joblib
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.datasets import load_diabetes, load_iris
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    features, labels = load_iris(return_X_y=True)
    joblib.dump(LogisticRegression(max_iter=200).fit(features, labels), folder / "iris.joblib")
    joblib.dump(
        RandomForestClassifier(10, n_jobs=-1, random_state=0).fit(features, labels), folder / "forest.joblib"
    )
    (folder / "diabetes.pkl").write_bytes(
        pickle.dumps(LinearRegression().fit(*load_diabetes(return_X_y=True)))
    )
    joblib.dump(HistGradientBoostingClassifier(max_iter=5).fit(features, labels), folder / "histogram.joblib")
    named = pd.DataFrame(features, columns=["sl", "sw", "pl", "pw"])
    names = np.array(["setosa", "versicolor", "virginica"])[labels]
    joblib.dump(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(named, names),
        folder / "framed.joblib",
    )
    table, wanted = people
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "visits"]),
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
        ]
    )
    joblib.dump(make_pipeline(columns, LogisticRegression()).fit(table, wanted), folder / "people.joblib")
    texts = ["good film", "bad film", "good day", "bad day", "nice film", "awful film"]
    text_model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(
        texts, ["+", "-", "+", "-", "+", "-"]
    )
    (folder / "text.pickle").write_bytes(pickle.dumps(text_model))
    rows = [{"word": "a", "size": 1.0}, {"word": "b", "size": 3.0}]
    joblib.dump(
        make_pipeline(DictVectorizer(), LinearRegression()).fit(rows, [1.0, 3.0]), folder / "words.joblib"
    )
    joblib.dump(LogisticRegression(), folder / "unfitted.joblib")
    joblib.dump({"model": 1}, folder / "dictionary.joblib")


def _train_boosters(folder: Path) -> None:
    import lightgbm
    import xgboost
    from sklearn.datasets import load_breast_cancer, load_iris

    features, labels = load_iris(return_X_y=True)
    xgboost.XGBClassifier(n_estimators=5, n_jobs=1).fit(features, labels).save_model(folder / "boosted.json")
    binary, target = load_breast_cancer(return_X_y=True)
    matrix = xgboost.DMatrix(binary[:, :3], target)
    xgboost.train({"objective": "binary:logistic", "nthread": 1}, matrix, 5).save_model(folder / "raw.ubj")
    data = lightgbm.Dataset(features, labels, feature_name=["sl", "sw", "pl", "pw"])
    parameters = {"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1}
    lightgbm.train(parameters, data, 5).save_model(folder / "light.txt")


def _train_onnx(folder: Path) -> None:
    from skl2onnx import convert_sklearn, to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    features, labels = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=200).fit(features, labels)
    rows = [("rows", FloatTensorType([None, 4]))]
    (folder / "iris.onnx").write_bytes(convert_sklearn(model, initial_types=rows).SerializeToString())
    plain = to_onnx(model, features[:1].astype(np.float32), options={"zipmap": False})
    (folder / "plain.onnx").write_bytes(plain.SerializeToString())
    import pandas as pd

    table = pd.DataFrame({"age": [1.0, 2.0, 3.0, 4.0], "city": ["a", "b", "a", "b"]})
    columns = ColumnTransformer([("n", StandardScaler(), ["age"]), ("c", OneHotEncoder(), ["city"])])
    pipeline = make_pipeline(columns, LogisticRegression()).fit(table, [0, 1, 0, 1])
    kinds = [("age", FloatTensorType([None, 1])), ("city", StringTensorType([None, 1]))]
    converted = convert_sklearn(pipeline, initial_types=kinds, options={"zipmap": False})
    (folder / "people.onnx").write_bytes(converted.SerializeToString())


def _pickle_strange(folder: Path, strange_models: Path) -> None:
    program = (
        "import pickle, strange_models as s\n"
        "for name in ('Sleeper', 'Unfathomable', 'Broken', 'Greedy', 'SlowLoader', 'Dice'):\n"
        "    open(f'{name.lower()}.pkl', 'wb').write(pickle.dumps(getattr(s, name)()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(strange_models)}
    subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True)
