"""The program inside a replica: holds a model and answers V1 and V2."""
