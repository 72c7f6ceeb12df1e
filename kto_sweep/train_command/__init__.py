"""`kto-sweep train`: one trial of no sweep, from its options to its end.

options, resume --> prepare (trial, server, folder) --> dry_run | run
"""
