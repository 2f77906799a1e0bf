"""A LitServe server with a scikit-learn model: MODEL PORT."""

import sys

import joblib
import litserve
import numpy as np


class Iris(litserve.LitAPI):
    def setup(self, device):  # noqa: ARG002 - LitServe's signature
        self.estimator = joblib.load(sys.argv[1])

    def decode_request(self, request):
        return np.asarray(request["instances"])

    def batch(self, inputs):
        self.sizes = [len(rows) for rows in inputs]
        return np.concatenate(inputs)

    def predict(self, rows):
        return self.estimator.predict(rows)

    def unbatch(self, output):
        return np.split(output, np.cumsum(self.sizes)[:-1])

    def encode_response(self, output):
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    api = Iris(max_batch_size=64, batch_timeout=0.002)
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        generate_client_file=False,
        log_level="error",
        num_api_servers=1,
    )
