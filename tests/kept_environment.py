"""What the commands of a test's box take over of the tests' own environment."""

import os

KEPT = ("PATH", "PYTHONPATH", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES")


def kept_environment() -> dict[str, str]:
    """No key, home or setting of whoever runs the tests; and no GPU, see conftest."""
    return {name: os.environ[name] for name in KEPT if name in os.environ}
