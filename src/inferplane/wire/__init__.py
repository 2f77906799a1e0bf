"""Shapes on the network, shared by server and SDK."""
