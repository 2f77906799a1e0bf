"""Model servers as InferenceServices of a Kubernetes cluster."""
