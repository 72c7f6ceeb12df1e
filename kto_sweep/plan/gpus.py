"""A table of GPUs: memory, peak FLOP/s and bandwidth from their data sheets."""

import re
import shutil
import subprocess
from dataclasses import dataclass, replace

from kto_sweep.errors import UsageError
from kto_sweep.models.presets import IN_FP8
from kto_sweep.text import nearest

CONTEXT_GIB = 0.8
"""Memory of CUDA's context and compiled kernels, which tensors cannot use."""
USABLE = 0.96
"""Share of the rest that tensors can use; fragmentation wastes some."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    gib: float
    """Memory as reported by the driver."""
    tflops: float | None = None
    """Dense 16-bit matrix products with float32 accumulation, from its data sheet; None: unknown."""
    gb_per_s: float | None = None
    """Memory bandwidth from its data sheet."""
    has_fp8: bool | None = None
    """Whether it multiplies in FP8 (Ada, Hopper and later); None: unknown."""

    @property
    def usable_gib(self) -> float:
        """GiB available for tensors."""
        return (self.gib - CONTEXT_GIB) * USABLE


# NVIDIA's data sheets.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("b200", 178.4, 2250, 8000, has_fp8=True),
        Gpu("h200", 139.8, 989, 4800, has_fp8=True),
        Gpu("h100", 79.1, 989, 3350, has_fp8=True),
        Gpu("a100-80gb", 79.1, 312, 2039, has_fp8=False),
        Gpu("a100-40gb", 39.4, 312, 1555, has_fp8=False),
        Gpu("l40s", 44.5, 362, 864, has_fp8=True),
        Gpu("rtx6000ada", 47.4, 364, 960, has_fp8=True),
        Gpu("a6000", 47.5, 155, 768, has_fp8=False),
        Gpu("a40", 44.4, 150, 696, has_fp8=False),
        Gpu("rtx5090", 31.4, 210, 1792, has_fp8=True),
        Gpu("rtx4090", 23.5, 165, 1008, has_fp8=True),
        Gpu("rtx3090", 23.6, 71, 936, has_fp8=False),
        Gpu("a10", 22.0, 125, 600, has_fp8=False),
        Gpu("l4", 22.0, 121, 300, has_fp8=True),
    )
}


def named_gpu(text: str) -> Gpu:
    """The GPU that `--gpu` names: from the table, or a memory size such as 24GB. Raises UsageError."""
    word = re.sub(r"[\s_-]", "", text.lower())
    for name, gpu in GPUS.items():
        if word in (name.replace("-", ""), f"nvidia{name.replace('-', '')}"):
            return gpu
    size = re.fullmatch(r"(\d+(?:\.\d+)?)g(?:i?b)?", word)
    if size is not None and float(size[1]) > 1:
        return Gpu(f"a GPU of {size[1]} GiB", float(size[1]))
    near = nearest(word, GPUS)
    names = ", ".join(GPUS)
    raise UsageError(f"--gpu {text}: unknown GPU", hint=near or f"{names}; a size such as 24GB; or this")


def present_gpu(name: str, gib: float) -> Gpu:
    """The GPU with the driver's name `name`, with its speeds if the table has it."""
    words = re.sub(r"[\s_-]|nvidia|geforce|tesla|generation", "", name.lower())
    for listed in sorted(GPUS.values(), key=lambda gpu: -len(gpu.name)):
        plain = listed.name.replace("-", "")
        if plain in words or plain.removesuffix("80gb").removesuffix("40gb") in words:
            same_size = abs(listed.gib - gib) < 0.15 * listed.gib
            if same_size or not plain.startswith("a100"):
                return replace(listed, name=name, gib=gib)
    return Gpu(name, gib)


def find_gpu() -> Gpu | None:
    """The smallest GPU of this machine, from nvidia-smi; None without a GPU or with MIG enabled."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [[part.strip() for part in line.split(",")] for line in output.splitlines() if line.strip()]
    if not rows or any(len(row) != 3 or row[2] == "Enabled" or not row[1].isdigit() for row in rows):
        return None
    name, mib, _ = min(rows, key=lambda row: int(row[1]))
    return present_gpu(name, int(mib) / 1024)


class NoFp8Error(UsageError):
    """A device that cannot multiply in FP8."""

    def __init__(self, quantization: str, device: str) -> None:
        instead = "none, or 4bit" if quantization == "fp8" else "4bit"
        super().__init__(
            f"quantization {quantization}: {device} has no FP8 (Ada, Hopper and later GPUs have)",
            hint=f"quantization: {instead}",
        )


def require_fp8(gpu: Gpu | None, quantization: str) -> None:
    """Raises NoFp8Error for a quantization in FP8 on a GPU without it."""
    if quantization in IN_FP8 and gpu is not None and gpu.has_fp8 is False:
        raise NoFp8Error(quantization, gpu.name)
