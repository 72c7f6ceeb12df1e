"""The sweep file: YAML in, a checked W&B sweep configuration out, or every problem with its line.

yaml_source --> setting_checks, command_checks, kto_sweep_block, parameters, data_files
            --> normalise --> sweep_config: what to register
            --> validate: the same with the contents of its data files
generate writes such a file from flags and data.
"""
