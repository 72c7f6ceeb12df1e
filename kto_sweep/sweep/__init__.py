"""A registered sweep: its name, its runs as plain data, and operations on it.

view, trial_state, grid_status,     a sweep and its trials as plain data, their states and their compute time;
sweep_state, gpu_hours              pure functions
create, resume, reuse               register a sweep, resume one, reuse trials of earlier sweeps
push, sync                          copy a sweep to W&B, send runs that a server missed
server_choice                       W&B or the embedded server
"""
