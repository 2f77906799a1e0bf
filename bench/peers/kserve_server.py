"""KServe's Python server with a scikit-learn model: MODEL PORT."""

import sys

import joblib
from kserve import InferRequest, Model, ModelServer
from kserve.utils.utils import get_predict_input, get_predict_response


class Estimator(Model):
    """What KServe's own sklearn server does: load a file, predict rows."""

    def __init__(self, name, path):
        super().__init__(name)
        self.estimator = joblib.load(path)
        self.ready = True

    def predict(self, payload, headers=None):  # noqa: ARG002 - KServe's signature
        if isinstance(payload, InferRequest):
            return get_predict_response(
                payload, self.estimator.predict(get_predict_input(payload)), self.name
            )
        return {"predictions": self.estimator.predict(payload["instances"]).tolist()}


if __name__ == "__main__":
    model, port = sys.argv[1:]
    sys.argv[1:] = []
    ModelServer(http_port=int(port), enable_grpc=False, access_log_format=None).start(
        [Estimator("iris", model)]
    )
