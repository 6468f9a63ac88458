"""Engines: the protocol, vLLM, its fake twin, and several models in one replica."""
