"""`python -m inferplane.cli.iris FILE`: train a small classifier on a data set that ships with scikit-learn.

A program of its own, so that the quickstart can start the platform meanwhile and need not hold
scikit-learn in memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

MISSING_EXIT_CODE = 3


def train(path: Path) -> None:
    """Write the model to `path`, whole or not at all. Raises ImportError without scikit-learn."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    flowers = load_iris()
    model = LogisticRegression(max_iter=500).fit(flowers.data, flowers.target)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    joblib.dump(model, unfinished)
    unfinished.replace(path)


if __name__ == "__main__":
    try:
        train(Path(sys.argv[1]))
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(MISSING_EXIT_CODE)
