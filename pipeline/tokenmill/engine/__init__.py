"""Engines: the protocol, vLLM, the fake one, and several models in one replica."""
