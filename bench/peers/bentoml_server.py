"""A BentoML service with a scikit-learn model, whose path is in BENCH_MODEL; calls are batched."""

import os

import bentoml
import joblib
import numpy as np


@bentoml.service(traffic={"timeout": 30, "concurrency": 1000})
class Iris:
    def __init__(self) -> None:
        self.estimator = joblib.load(os.environ["BENCH_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=1024, max_latency_ms=1000)
    def predict(self, instances: np.ndarray) -> np.ndarray:
        return self.estimator.predict(instances)
