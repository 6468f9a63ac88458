"""The hardware of this machine: GPUs and CPU instructions."""

from pathlib import Path


def has_local_gpus() -> bool:
    """Whether this machine has NVIDIA GPUs."""
    return Path("/dev/nvidiactl").exists()


def cpu_has_bf16() -> bool:
    """Whether the CPU computes in bfloat16. Emulated, it is 6 to 9 times slower than float32."""
    return not cpu_flags().isdisjoint(("avx512_bf16", "amx_bf16"))


def cpu_flags() -> frozenset[str]:
    """The instruction sets of an x86 CPU, as named by Linux; empty if Linux does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
