"""One module a format: load(path) → something that predicts."""
