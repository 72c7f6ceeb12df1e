"""The sweep file: YAML in, a checked W&B sweep configuration out, or every problem with its line.

yaml_source --> checks, parameters, block, data_files --> spec (what to register) --> validate (with the data)
generate writes such a file from flags and data.
"""
