"""Hyper-parameter sweeps for KTO fine-tuning, native to W&B sweeps.

sweeps/lr_grid.yaml
     | spec/: read and check, all problems at once; plan/: memory, time and disk of each trial
     v
a registered sweep            (sweep/: on W&B, or on server/: embedded, W&B-compatible)
     | search/: the next trial of the space
     v
agent/   one supervisor per box: the W&B runs of the trials; no torch
     | trial configuration  ^ metrics
     v                      |
train/   one worker per device: data/ -> KTO step -> evaluation -> adapters; no wandb
     |
     v
compare/ which trial won, read through wandb.Api from either server

single/  one run without a sweep: the same agent and trainer. cli/  one file per command.
"""

__version__ = "0.1.0"
