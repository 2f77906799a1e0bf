"""How many replicas an endpoint should have: `decide(scaling, current, traffic, now) → Decision`. Pure."""

from inferplane.autoscaler.decision import Decision, decide
from inferplane.autoscaler.history import History, Sample, Traffic

__all__ = ["Decision", "History", "Sample", "Traffic", "decide"]
