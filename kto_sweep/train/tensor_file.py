"""Tensors in a file that is there as a whole or not at all."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in place of what was there; a crash at any moment leaves the old or the new.

    Raises OSError when the disk is full.
    """
    new = path.with_name(f"{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it meanwhile
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, dict(metadata))
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))  # what the system said, wrapped
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        new.unlink(missing_ok=True)
