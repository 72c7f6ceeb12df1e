"""Entry point for wandb's own agents: one trial for `wandb agent`, or a whole sweep in this process.

    wandb agent ENTITY/PROJECT/SWEEP      starts this file once for each trial, as the sweep's `program`
    python agent.py ENTITY/PROJECT/SWEEP  runs trials in this process: wandb.agent(..., function=...)

`kto-sweep agent` does more: it loads the model only once, and survives trials that crash.
"""

from kto_sweep.agent.wandb_agent import main

if __name__ == "__main__":
    main()
