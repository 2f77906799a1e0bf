"""Train a classifier on a data set that ships with scikit-learn, ready to be deployed.

python examples/train_iris.py /tmp/iris/model.joblib
inferplane deploy sklearn-iris --format sklearn --uri /tmp/iris/model.joblib --wait
inferplane predict sklearn-iris -d '{"instances": [[5.1, 3.5, 1.4, 0.2]]}'
"""

from __future__ import annotations

import argparse
from pathlib import Path

import joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def main(path: Path) -> None:
    """Train on all 150 flowers and write one file."""
    flowers = load_iris()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(flowers.data, flowers.target)
    path.parent.mkdir(parents=True, exist_ok=True)
    joblib.dump(model, path)
    print(
        f"wrote {path}; on its own data it is right {model.score(flowers.data, flowers.target):.0%} of the time"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, nargs="?", default=Path("model.joblib"), help="the file to write")
    main(parser.parse_args().path)
