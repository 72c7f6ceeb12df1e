"""What a sweep will take before it is run: memory, time, disk, and how many trials fit side by side.

data, tokenizer --> workload (tokens of each step) --+
config.json ------> architecture --------------------+--> memory, seconds, disk of each cell --> plan
--gpu ------------> gpus ----------------------------+
"""
