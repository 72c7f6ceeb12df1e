"""The agent: one supervisor per box with the W&B runs of its trials; wandb, never torch.

run_agent (one call of the command) --> supervisor (the loop)

         executor.next_event --> scheduler.step(state, event, now) --> executor.perform(actions)
         processes, W&B runs,    pure: state, events, actions,
         heartbeats, threads     transition; slots, trial_lifecycle, worker_exits, shutdown, watchdog,
                                 connectivity by the rules of retry_policy and time_budget

trial_source   a sweep's server, or one trial          workers, heartbeat, wandb_run   what executor runs
lease, recovery, delivery, preflight, devices          before the loop and after it
wandb_agent    the other way: wandb's own agents, one process that logs and trains
"""
