"""The worker's side: torch, never wandb."""

import logging

# bitsandbytes says at import that a kernel package for 4-bit on CPUs is absent: nothing that a user can mend.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
