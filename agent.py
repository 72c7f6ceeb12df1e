"""The stock way in: one trial for `wandb agent`, or a whole sweep through wandb's own in-process agent.

    wandb agent ENTITY/PROJECT/SWEEP      starts this file once for each trial, as the sweep's `program`
    python agent.py ENTITY/PROJECT/SWEEP  runs trials in this process: wandb.agent(..., function=...)

`kto-sweep agent` does the same and more: it loads the model once, and survives what a trial does.
"""

from kto_sweep.agent.wandb_agent import main

if __name__ == "__main__":
    main()
