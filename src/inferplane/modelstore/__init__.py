"""From a storage URI to a verified local directory."""
