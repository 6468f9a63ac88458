"""Ray: executors, actors, the local cluster, and jobs submitted to a remote one."""
