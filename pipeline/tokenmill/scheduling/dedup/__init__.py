"""Send equal requests once, within a replica and across the replicas of a run."""
