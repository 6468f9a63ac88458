"""A Ray cluster of two nodes on this machine, as a process of its own: the second one can be lost.

Prints the address; a line on standard input kills the second node, the end of it ends all.
"""

import sys

from ray.cluster_utils import Cluster

_NODE = {"object_store_memory": 150_000_000, "include_dashboard": False}


def main() -> None:
    head_cpus, second_cpus = map(int, sys.argv[1:])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus, **_NODE})
    second = cluster.add_node(num_cpus=second_cpus, object_store_memory=150_000_000)
    cluster.wait_for_nodes()
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    if sys.stdin.readline():
        # Its raylet and its workers, without a word to the head.
        cluster.remove_node(second, allow_graceful=False)
        sys.stdout.write("lost\n")
        sys.stdout.flush()
        sys.stdin.readline()
    cluster.shutdown()


if __name__ == "__main__":
    main()
