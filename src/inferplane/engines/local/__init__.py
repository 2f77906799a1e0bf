"""The local engine: model servers as processes on this machine."""
