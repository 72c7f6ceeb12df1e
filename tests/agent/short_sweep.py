"""A sweep file for tests: a grid of two trials of the tiny model, 4 steps each."""

SWEEP = """
method: grid
parameters:
  learning_rate:
    values: [3e-3, 1e-2]
  model_size: {value: tiny}
  dataset: {value: examples/support_replies.jsonl}
  batch_size: {value: 4}
  max_steps: {value: 4}
  max_length: {value: 128}
"""
