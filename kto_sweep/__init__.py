"""Hyper-parameter sweeps for KTO fine-tuning, native to W&B sweeps.

sweeps/lr_grid.yaml
     | spec, space, trial: read and check, all problems at once
     v
a registered sweep            (W&B, or server/: embedded, W&B-compatible)
     | search/: the next trial
     v
agent/   one supervisor per box: the W&B runs of the trials; no torch
     | trial configuration  ^ metrics
     v                      |
train/   one worker per device: data/ -> KTO step -> evaluation -> adapters; no wandb
     |
     v
compare, status: read through wandb.Api from either server
"""

__version__ = "0.1.0"
