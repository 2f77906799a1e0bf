"""The version, in a module of its own so that model servers can say it without importing the SDK's room."""

VERSION = "0.1.0"
