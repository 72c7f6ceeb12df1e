"""kto-sweep train: one run, from flags."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kto_sweep.cli.output import console, number, say

OTHER_FLAGS = {
    "model": ("--model-name",),
    "epochs": ("--num-epochs",),
    "max_length": ("--max-seq-length",),
    "dataset": ("--dataset-name", "--local-file"),
    "lora_r": ("--lora-rank",),
}
"""What KTO scripts call parameters as well."""


def parameter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each parameter of a trial; values are checked as those of a sweep file are."""
    from kto_sweep.parameter_types import Choice, Flag
    from kto_sweep.trial import PARAMETERS

    for name, rule in reversed(list(PARAMETERS.items())):
        flag = "--" + name.replace("_", "-")
        fits = rule.type.options if isinstance(rule.type, Choice) else ()
        told = rule.doc + (f": {', '.join(fits)}." if fits else ".")
        if rule.default is not None and not isinstance(rule.type, Flag):
            told += f" Default: {number(rule.default)}."
        if isinstance(rule.type, Flag):
            option = click.option(flag, name, is_flag=True, default=None, help=told)
        else:
            metavar = flag.rpartition("-")[2].upper()
            option = click.option(flag, *OTHER_FLAGS.get(name, ()), name, metavar=metavar, help=told)
        command = option(command)
    return command


@click.command()
@parameter_options
@click.option(
    "--config", type=click.Path(path_type=Path), help="A YAML file of parameters; flags come first."
)
@click.option(
    "--from", "source", metavar="SWEEP|RUN", help="Take over the best trial's, or a run's, parameters."
)
@click.option("--whole-data", is_flag=True, help="Hold out no more than a row or so of each label.")
@click.option("--dataset-file", metavar="FILE", help="A file of the data set that --dataset-name names.")
@click.option("--split-dataset", is_flag=True, help="Hold rows out for evaluation; always done.")
@click.option(
    "--gradient-accumulation",
    type=click.IntRange(min=1),
    help="Times --batch-size is the batch of a step: how it is split is found out.",
)
@click.option("--output-dir", type=click.Path(path_type=Path), help="Folder for weights, log, lineage, card.")
@click.option(
    "--wandb/--local", "wandb", default=None, help="Log to W&B or to the embedded server; by the key."
)
@click.option("--wandb-project", "--project", "project", help="Default: WANDB_PROJECT, or kto-sweep.")
@click.option("--wandb-entity", "--entity", "entity", help="Default: WANDB_ENTITY, or that of the key.")
@click.option("--wandb-run-name", "name", help="Default: model, learning rate, batch size, beta, data.")
@click.option(
    "--resume-from-checkpoint",
    "resume",
    is_flag=False,
    flag_value="auto",
    metavar="[RUN|DIR|auto]",
    help="Go on with a run that was cut off; auto: with the last one.",
)
@click.option(
    "--gpus",
    "--gpus-per-trial",
    "gpus",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="GPUs for this run.",
)
@click.option("--cpu", is_flag=True, help="Use no GPU.")
@click.option(
    "--samples", type=click.IntRange(min=0), default=0, help="Log base and tuned answers to so many prompts."
)
@click.option("--hf-token", metavar="TOKEN", help="Of the Hugging Face hub; safer as HF_TOKEN, also in .env.")
@click.option("--dry-run", is_flag=True, help="Check data, model, memory and login; train nothing.")
@click.option("--debug", is_flag=True, help="Show Python's traceback with an error.")
def train(
    config: Path | None,
    source: str | None,
    whole_data: bool,
    dataset_file: str | None,
    split_dataset: bool,
    gradient_accumulation: int | None,
    output_dir: Path | None,
    wandb: bool | None,
    project: str | None,
    entity: str | None,
    name: str | None,
    resume: str | None,
    gpus: int,
    cpu: bool,
    samples: int,
    hf_token: str | None,
    dry_run: bool,
    debug: bool,
    **parameters: Any,
) -> int:
    """Train one run. With a W&B key (also in .env) it is logged to W&B, else to the embedded server.

    Every parameter of a sweep file is a flag. Those that are not given come from --config, --from or the
    preset of --model-size, in this order.

    \b
    kto-sweep train --model-size 7b --local-file rows.jsonl --learning-rate 5e-7
    kto-sweep train --from my-team/kto/ab12cd34 --whole-data
    kto-sweep train --config run.yaml --dry-run
    kto-sweep train --resume-from-checkpoint
    """
    import os
    from dataclasses import replace

    from kto_sweep.data.files import join_source
    from kto_sweep.home import Home
    from kto_sweep.train_command.prepare import Asked, prepare

    typed = {key: value for key, value in parameters.items() if value is not None}
    if isinstance(typed.get("lora_targets"), str) and typed["lora_targets"] != "all-linear":
        typed["lora_targets"] = [part.strip() for part in typed["lora_targets"].split(",")]
    if dataset_file is not None:
        typed["dataset"] = join_source(typed.get("dataset"), dataset_file)
    if hf_token is not None:
        os.environ["HF_TOKEN"] = hf_token
    home = Home.from_environment()
    prepared = prepare(
        home,
        Asked(
            typed,
            config,
            source,
            whole_data,
            gradient_accumulation,
            output_dir,
            wandb,
            project,
            entity,
            name,
            resume,
        ),
        say,
    )
    if dry_run:
        from kto_sweep.train_command.dry_run import check

        return 0 if check(home, prepared, gpus=gpus, cpu=cpu, console=console()) else 1
    from kto_sweep.train_command.run import train_one

    prepared.make_folder(home)
    job = replace(prepared.job, samples=samples)
    return train_one(home, job, prepared.target, offline=prepared.offline, gpus=gpus, cpu=cpu)
