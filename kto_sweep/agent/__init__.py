"""The agent: one supervisor per box that owns the W&B runs of its trials; imports wandb, never torch.

run_agent (one call of the command) --> supervisor (the loop)

         executor.next_event --> scheduler.step(state, event, now) --> executor.perform(actions)
         processes, W&B runs,    pure: state, events, actions,
         heartbeats, threads     transition; slots, trial_lifecycle, worker_exits, shutdown, watchdog,
                                 connectivity by the rules of retry_policy and time_budget

trial_source   a sweep's server, or one trial          workers, heartbeat, wandb_run   run by executor
lease, recovery, delivery, preflight, devices          used before and after the loop
wandb_agent    for wandb's own agents instead: one process that both logs and trains
"""
