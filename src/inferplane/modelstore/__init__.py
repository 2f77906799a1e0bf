"""From a storage URI to a verified local directory: progress, resume, digest, shared cache."""
