"""A registered sweep: its name, its runs as plain data, and what is done with it.

view, grid_status, gpu_hours   what a sweep and its trials are, pure
create, resume, reuse          registered, set running again, from earlier trials
push, sync                     copied to W&B, sent late
server_choice                  W&B or the embedded server
"""
