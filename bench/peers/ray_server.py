"""Ray Serve with a scikit-learn model and batching: MODEL PORT."""

import signal
import sys

import joblib
import numpy as np
import ray
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=256)
class Iris:
    def __init__(self, path):
        self.estimator = joblib.load(path)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def predict(self, inputs):
        answers = self.estimator.predict(np.concatenate(inputs))
        return np.split(answers, np.cumsum([len(rows) for rows in inputs])[:-1])

    async def __call__(self, request):
        content = await request.json()
        answers = await self.predict(np.asarray(content["instances"]))
        return {"predictions": answers.tolist()}


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=4, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(Iris.bind(sys.argv[1]))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
