"""Hyper-parameter sweeps for KTO fine-tuning, native to W&B sweeps.

sweeps/lr_grid.yaml
     | sweep_file/: parse and check, all problems at once   plan/, models/: memory, time, disk of a trial
     v
a registered sweep         sweep/: on W&B, or on server/: embedded, W&B-compatible, started by local_server/
     | search/: the next trial of the space
     v
agent/   one supervisor per box: the W&B runs of the trials; no torch
     | trial configuration  ^ metrics                        protocol: orders and messages
     v                      |
train/   one worker per device: data/ -> KTO step -> evaluation -> adapters; no wandb
     |
     v
compare/ ranks a sweep's trials (pure); wandb_client/ reads the sweep from either server; report/ draws it

train_command/  one trial without a sweep, with the same agent and trainer   cli/  one file per command
"""

__version__ = "0.1.0"
