"""Identical requests computed once, within a replica and across replicas."""
