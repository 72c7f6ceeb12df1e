"""kto-sweep train: a single run, from flags."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from kto_sweep.cli.output import counting, json_option, say
from kto_sweep.cli.path_option import UserPath
from kto_sweep.text import number

FLAG_ALIASES = {
    "model": ("--model-name",),
    "epochs": ("--num-epochs",),
    "max_length": ("--max-seq-length",),
    "dataset": ("--dataset-name", "--local-file"),
    "lora_r": ("--lora-rank",),
}
"""Names that other KTO scripts use for parameters."""


def parameter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with an option for each parameter of a trial, checked as in a sweep file."""
    from kto_sweep.parameter_types import Choice, Flag, Sources
    from kto_sweep.trial import PARAMETERS

    for name, rule in reversed(list(PARAMETERS.items())):
        flag = "--" + name.replace("_", "-")
        choices = rule.type.options if isinstance(rule.type, Choice) else ()
        help_text = rule.doc + (f": {', '.join(choices)}." if choices else ".")
        if rule.default is not None and not isinstance(rule.type, Flag):
            help_text += f" Default: {number(rule.default)}."
        several = isinstance(rule.type, Sources)
        if several:
            help_text += " Repeat it for several."
        if isinstance(rule.type, Flag):
            option = click.option(flag, name, is_flag=True, default=None, help=help_text)
        else:
            metavar = flag.rpartition("-")[2].upper()
            names = (flag, *FLAG_ALIASES.get(name, ()), name)
            option = click.option(*names, metavar=metavar, help=help_text, multiple=several)
        command = option(command)
    return command


@click.command()
@parameter_options
@click.option("--config", type=UserPath(), help="A YAML file of parameters; flags override it.")
@click.option(
    "--from", "source", metavar="SWEEP|RUN", help="Use the parameters of a sweep's best trial, or of a run."
)
@click.option("--whole-data", is_flag=True, help="Hold out only about one row of each label.")
@click.option("--dataset-file", metavar="FILE", help="The file of --dataset-name to use.")
@click.option("--split-dataset", is_flag=True, help="No effect: rows are always held out for evaluation.")
@click.option(
    "--gradient-accumulation",
    type=click.IntRange(min=1),
    help="Multiplies --batch-size; the micro-batch size is chosen automatically.",
)
@click.option("--output-dir", type=UserPath(), help="Folder for weights, log, lineage and model card.")
@click.option(
    "--wandb/--local",
    "wandb",
    default=None,
    help="Log to W&B or to the embedded server. Default: W&B if there is a key.",
)
@click.option("--wandb-project", "--project", "project", help="Default: WANDB_PROJECT, or kto-sweep.")
@click.option("--wandb-entity", "--entity", "entity", help="Default: WANDB_ENTITY, or the key's.")
@click.option(
    "--wandb-run-name", "name", help="Default: from model, learning rate, batch size, beta and data."
)
@click.option(
    "--resume-from-checkpoint",
    "resume",
    is_flag=False,
    flag_value="auto",
    metavar="[RUN|DIR|auto]",
    help="Resume an interrupted run; auto: the last one.",
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
@click.option("--cpu", is_flag=True, help="Train on the CPU.")
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=0,
    help="Log base and tuned answers to this many held-out prompts.",
)
@click.option(
    "--hf-token", metavar="TOKEN", help="Hugging Face token; HF_TOKEN, also in .env, is safer than a flag."
)
@click.option("--dry-run", is_flag=True, help="Check data, model, memory and login without training.")
@click.option(
    "--show",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --dry-run: print the first N rows as the model gets them.",
)
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
@json_option
@click.pass_obj
def train(
    worker: Sequence[str] | None,
    /,
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
    show: int | None,
    debug: bool,
    as_json: bool,
    **parameters: Any,
) -> int:
    """Train a single run. Logs to W&B if there is a key (also in .env), else to the embedded server.

    Every parameter of a sweep file is a flag. Parameters without a flag come from --config, --from or the
    preset of --model-size, in this order.

    \b
    kto-sweep train --model-size 7b --local-file rows.jsonl --learning-rate 5e-7
    kto-sweep train --from my-team/kto/ab12cd34 --whole-data
    kto-sweep train --config run.yaml --dry-run
    kto-sweep train --resume-from-checkpoint
    """
    import os
    import sys
    from dataclasses import replace
    from functools import partial

    from kto_sweep.agent.progress import EndReport
    from kto_sweep.data.sources import join_source
    from kto_sweep.errors import UsageError
    from kto_sweep.home import Home
    from kto_sweep.provenance import without_secrets
    from kto_sweep.terminal import LineConsole
    from kto_sweep.train_command.prepare import TrainOptions, prepare

    if show is not None and not dry_run:
        raise UsageError("--show prints rows without training", hint="add --dry-run")
    flags = {key: value for key, value in parameters.items() if value not in (None, ())}
    if isinstance(flags.get("lora_targets"), str) and flags["lora_targets"] != "all-linear":
        flags["lora_targets"] = [part.strip() for part in flags["lora_targets"].split(",")]
    if dataset_file is not None:
        *others, last = flags.get("dataset") or (None,)
        flags["dataset"] = (*others, join_source(last, dataset_file))
    if hf_token is not None:
        os.environ["HF_TOKEN"] = hf_token
        sys.argv[:] = without_secrets(sys.argv)  # wandb uploads it
    home = Home.from_environment()
    options = TrainOptions(
        flags,
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
    )
    report = EndReport(as_json=as_json)
    with counting("examples checked", show=True) as count:
        prepared = prepare(home, options, partial(say, as_json=as_json), count)
    if dry_run:
        from kto_sweep.train_command.dry_run import dry_run as check_run

        output = LineConsole(file=report.stream, highlight=False)
        fits = check_run(home, prepared, gpus=gpus, cpu=cpu, show=show or 0, console=output)
        report.fields |= {"dry_run": True, "fits": fits}
        report.print(0 if fits else 1)
        return 0 if fits else 1
    from kto_sweep.agent.workers import TRAINER
    from kto_sweep.train_command.run import train_one

    prepared.make_folder(home)
    job, worker = replace(prepared.job, samples=samples), worker or TRAINER
    offline, target = prepared.offline, prepared.target
    code = train_one(home, job, target, offline=offline, gpus=gpus, cpu=cpu, worker=worker, report=report)
    report.print(code)
    return code
