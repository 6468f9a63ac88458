"""What this machine has: GPUs and CPU instructions."""

from pathlib import Path


def has_local_gpus() -> bool:
    """Whether this machine has GPUs for engines."""
    return Path("/dev/nvidiactl").exists()


def cpu_has_bf16() -> bool:
    """Whether bfloat16 is fast here; emulated, it is 6 to 9 times slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))


def cpu_flags() -> frozenset[str]:
    """What an x86 CPU can do, in Linux's words; nothing where Linux does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
