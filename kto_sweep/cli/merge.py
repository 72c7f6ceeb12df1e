"""kto-sweep merge: a run's adapters and its base model as one model."""

from pathlib import Path

import click

from kto_sweep.cli.output import json_option, print_json, say


@click.command()
@click.argument("run")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder to write. Default: merged in the run's."
)
@click.option("--best", is_flag=True, help="The adapters of the best evaluation, not of the last step.")
@json_option
def merge(run: str, output: Path | None, best: bool, as_json: bool) -> None:
    """Write the merged weights of RUN, a run or trial of this box: safetensors, tokenizer and model card.

    Nothing is overwritten, and nothing is uploaded.

    \b
    kto-sweep merge ab12cd34
    kto-sweep merge runs/7b --best --output my-model
    """
    from kto_sweep.home import Home
    from kto_sweep.train.merge import merge as write
    from kto_sweep.train_command.resume import go_where_it_began, known_run

    home, output = Home.from_environment(), output and output.expanduser().resolve()
    trained = known_run(home, run)
    go_where_it_began(trained)
    folder = write(home, trained, output, best=best, say=lambda line: say(line, as_json=as_json))
    if as_json:
        print_json({"folder": str(folder)})
        return
    say(f"Merged model: {folder}")
    say(f"To the hub: hf upload OWNER/NAME {folder}")
