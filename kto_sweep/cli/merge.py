"""kto-sweep merge: a run's adapters merged into its base model."""

from pathlib import Path

import click

from kto_sweep.cli.output import json_option, print_json, say
from kto_sweep.cli.path_option import UserPath
from kto_sweep.paths import resolved


@click.command()
@click.argument("run")
@click.option("--output", type=UserPath(), help="Output folder. Default: `merged` in the run's folder.")
@click.option("--best", is_flag=True, help="Use the adapters of the best evaluation, not of the last step.")
@json_option
def merge(run: str, output: Path | None, best: bool, as_json: bool) -> None:
    """Merge the adapters of RUN, a run or trial on this box, into its base model and write safetensors.

    Also writes the tokenizer and a model card. Never overwrites and never uploads anything.

    \b
    kto-sweep merge ab12cd34
    kto-sweep merge runs/7b --best --output my-model
    """
    from kto_sweep.home import Home
    from kto_sweep.memory_limit import TORCH_BYTES, require_address_space

    require_address_space(TORCH_BYTES, "merging")
    from kto_sweep.train.merge import merge as write
    from kto_sweep.train_command.resume import require_run, restore_working_directory

    home, output = Home.from_environment(), output and resolved(output)
    run_folder = require_run(home, run)
    restore_working_directory(run_folder)
    merged = write(home, run_folder, output, best=best, say=lambda line: say(line, as_json=as_json))
    if as_json:
        print_json({"folder": str(merged)})
        return
    say(f"Merged model: {merged}")
    say(f"Upload it: hf upload OWNER/NAME {merged}")
