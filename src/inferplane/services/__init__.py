"""What users may do: one function a verb, one transaction each."""
