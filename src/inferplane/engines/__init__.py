"""Where model servers run: one port, one adapter an engine."""
