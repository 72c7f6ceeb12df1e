"""Checks a run before it starts, without using the GPU."""

from typing import TYPE_CHECKING

from kto_sweep.data.examples import describe_bad
from kto_sweep.data.load import load_characters, load_tokens
from kto_sweep.data.shown_rows import RowInspector
from kto_sweep.home import Home
from kto_sweep.models.hub import bytes_to_download, no_safetensors_error
from kto_sweep.models.model_checks import held_max_length, stop_tokens
from kto_sweep.models.presets import PRESETS
from kto_sweep.models.tokenizer import find_tokenizer, load_tokenizer
from kto_sweep.paths import user_path
from kto_sweep.plan.cells import PlanCell
from kto_sweep.plan.gpus import find_gpu
from kto_sweep.plan.planner import planner_for
from kto_sweep.plan.trial_model import require_trainable
from kto_sweep.text import counted, duration
from kto_sweep.train_command.prepare import PreparedRun
from kto_sweep.train_command.run import choose_devices, open_server
from kto_sweep.trial import Trial

if TYPE_CHECKING:
    from rich.console import Console


def dry_run(home: Home, run: PreparedRun, *, gpus: int, cpu: bool, show: int, console: "Console") -> bool:
    """Whether the run should fit on this box; prints data, model, device, memory, time and server.

    Also prints the first `show` rows as the model gets them.

    Raises UsageError, DataError and ServerError for anything that would prevent the run from starting.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    trial = run.job.trial
    run.folder()
    data = load_characters(trial.dataset)
    data.require_rows()
    bad = data.notes.bad
    skipped = f"; skipped: {describe_bad(bad, data.notes.places)}" if bad else ""
    rows = f"{counted(len(data.table), 'row')}, {data.table.counts[0]:,} desirable"
    say(f"data      {data.path}: {rows}{skipped}")
    for sentence in data.notes.sentences():
        say(f"          {sentence}")
    require_trainable(trial, find_tokenizer(trial.base_model))
    planner = planner_for(None if cpu else find_gpu(), home, this_box=True)
    estimate = planner.estimate_cell(PlanCell(trial, 1, {}))
    held = trial.effective_quantization
    say(f"model     {trial.base_model}, {'16 or 32 bit' if held == 'none' else held}{_weights(trial)}")
    devices = choose_devices(gpus=gpus, cpu=cpu)
    say(f"device    {', '.join(device.name for device in devices)}")
    say(f"steps     {estimate.steps:,} of {counted(trial.batch_size, 'example')}")
    if estimate.peak_gib is None or estimate.least_gib is None:
        say("memory    unknown: no configuration of the model on this box or on the hub")
    else:
        fits = {None: "", True: "; fits", False: f"; does not fit: {estimate.remedy}"}[estimate.fits]
        say(f"memory    {estimate.peak_gib:.1f} GiB, at least {estimate.least_gib:.1f}{fits}")
    if estimate.time is not None:
        say(f"time      {duration(estimate.time.seconds)}, within a factor of {estimate.time.factor:g}")
    api = open_server(run.target, offline=run.offline)
    login = f", logged in as {api.viewer.username}" if api is not None else ": offline, to be synced later"
    say(f"log       {run.target}{login}; project {run.job.project}, run {run.job.name}")
    for name, value in trial.to_config().items():
        say(f"  {name}: {value}")
    if show:
        tokenizer = load_tokenizer(trial.base_model)
        tokenised = load_tokens(trial.dataset, tokenizer, cache=home.cache)
        stops = RowInspector(tokenizer, stop_tokens(trial.base_model, tokenizer))
        length = held_max_length(trial.base_model, trial.max_length)
        for row in stops.show(tokenised.table, length, tokenised.notes.places, show):
            for line in row.described():
                say(line)
    say(
        "Dry run: nothing was trained."
        + ("" if estimate.fits is not False else " The run does not fit here.")
    )
    return estimate.fits is not False


def _weights(trial: Trial) -> str:
    """Where the base model's weights come from. Raises UsageError if there are none."""
    name = trial.base_model
    path = user_path(name)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise no_safetensors_error(name)
    if path.exists() or name == PRESETS["tiny"].model:
        return ""
    missing = bytes_to_download(name)
    if missing is None:
        return "; weights from the hub"
    return f"; {missing / 2**30:.1f} GiB of weights to download" if missing else "; weights on this box"
