"""A worker process that speaks protocol.py without torch: agents of tests start it in place of the real one.

Each loss follows from the configuration and the loss before it, so a row shows when a resume lost, repeated
or mixed up a step. A test that writes `before_step(config, step)` to the file SCRIPT of the home has trials
sleep, raise or die there.
"""

import contextlib
import hashlib
import json
import os
import queue
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from kto_sweep.errors import TrialFailure
from kto_sweep.fingerprints import DATA, MODEL
from kto_sweep.locks import RunLock
from kto_sweep.protocol import (
    MESSAGE_FD,
    Done,
    Failed,
    Loaded,
    Message,
    Metrics,
    Planned,
    Ready,
    StartTrial,
    StopTrial,
    WorkerBroken,
    decode,
    encode,
)
from kto_sweep.trial import Trial

COMMAND = (sys.executable, __file__)
CLI = ("-c", f"import sys; from kto_sweep.cli import run; sys.exit(run(sys.argv[1:], worker={COMMAND}))")
"""Arguments of a Python that is `kto-sweep` with this worker."""
SCRIPT = "before_step.py"
STEP_SECONDS = 0.05


def losses(trial: Trial, steps: int, earlier: Sequence[float] = ()) -> list[float]:
    """The losses of a trial's first steps; `earlier` are known."""
    known = list(earlier)
    while len(known) < steps:
        text = f"{trial} {known[-1:]}"
        known.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48)
    return known


class FakeTrial:
    """One trial: its losses so far are its checkpoint."""

    def __init__(self, start: StartTrial) -> None:
        self.run_id, self.config, self.folder = start.run_id, start.config, Path(start.out_dir)
        self.settings = Trial.from_config(start.config)
        self.total = self.settings.max_steps or 0
        self.checkpoint = self.folder / "checkpoint" / "last.safetensors"
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        self.lock = RunLock(self.folder)  # the agent's death does not end the trial
        self.losses = json.loads(self.checkpoint.read_text()) if self.checkpoint.exists() else []
        self.logged = len(self.losses) if start.logged_steps is None else start.logged_steps
        self.stopped, self.began = False, time.monotonic()

    def evaluates(self, step: int) -> bool:
        return step % self.settings.eval_every(self.total) == 0 or step == self.total

    def row(self, step: int) -> Metrics:
        loss = self.losses[step - 1]
        evaluation = {"eval/common_loss": loss} if self.evaluates(step) else {}
        return Metrics(self.run_id, step, {"loss": loss, "rewards/margins": 1 - loss, **evaluation})

    def save(self) -> None:
        new = self.checkpoint.with_suffix(".new")
        new.parent.mkdir(parents=True, exist_ok=True)  # a user may have removed it
        new.write_text(json.dumps(self.losses))
        new.replace(self.checkpoint)

    def finish(self) -> Done:
        """The end of a trial that has taken all steps, or is told to stop."""
        self.save()
        adapter = self.folder / "adapter"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_model.safetensors").write_text(json.dumps(self.losses))
        values = self.row(len(self.losses)).values if self.losses else {}
        summary = {**values, "trial/seconds": time.monotonic() - self.began, MODEL: "float32:none"}
        if (rows := Path(self.settings.dataset)).is_file():
            summary[DATA] = hashlib.sha256(rows.read_bytes()).hexdigest()
        return Done(self.run_id, summary, len(self.losses), self.stopped)


class FakeTrainer:
    """Trains all its trials together, one step of each in turn, until the agent is gone."""

    def __init__(self) -> None:
        self.messages = os.fdopen(int(os.environ[MESSAGE_FD]), "wb")
        self.orders: queue.SimpleQueue[StartTrial | StopTrial | None] = queue.SimpleQueue()
        self.trials: dict[str, FakeTrial] = {}
        self.agent_is_gone = False
        script = Path(os.environ["KTO_SWEEP_HOME"], SCRIPT)
        self.before_step = runpy.run_path(str(script))["before_step"] if script.exists() else lambda *_: None

    def read(self) -> None:
        for line in sys.stdin.buffer:
            self.orders.put(decode(line))
        self.orders.put(None)

    def run(self) -> None:
        threading.Thread(target=self.read, daemon=True).start()
        self.send(Ready("no device"))
        while not self.agent_is_gone or self.trials:
            self.take_orders()
            for trial in list(self.trials.values()):
                self.train(trial)
            time.sleep(STEP_SECONDS)

    def take_orders(self) -> None:
        while not self.agent_is_gone and (not self.trials or not self.orders.empty()):
            match self.orders.get():
                case StartTrial() as start:
                    trial = self.trials[start.run_id] = FakeTrial(start)
                    model = {"name": trial.settings.base_model, "trainable_parameters": 3}
                    self.send(Loaded(trial.run_id, {**start.provenance, "model": model}))
                    self.send(Planned(trial.run_id, trial.total, trial.logged))
                    for step in range(trial.logged + 1, len(trial.losses) + 1):
                        self.send(trial.row(step))
                case StopTrial(run_id) if run_id in self.trials:
                    self.trials[run_id].stopped = True
                case None:
                    self.agent_is_gone = True
                    for trial in self.trials.values():
                        trial.stopped = True

    def train(self, trial: FakeTrial) -> None:
        """Take one step, or end the trial."""
        step = len(trial.losses) + 1
        try:
            if not trial.stopped and step <= trial.total:
                self.before_step(trial.config, step)
                trial.losses = losses(trial.settings, step, trial.losses)
                if step > trial.logged:
                    self.send(trial.row(step))
                if trial.evaluates(step):
                    trial.save()
                return
            end: Done | Failed = trial.finish()
        except TrialFailure as error:
            end = Failed(trial.run_id, error.cause, error.message, error.hint)
        del self.trials[trial.run_id]
        trial.lock.release()
        self.send(end)

    def send(self, message: Message) -> None:
        with contextlib.suppress(BrokenPipeError):  # stdin ends too
            self.messages.write(encode(message))
            self.messages.flush()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the agent decides
    trainer = FakeTrainer()
    try:
        trainer.run()
    except Exception as error:
        trainer.send(WorkerBroken(f"{type(error).__name__}: {error}"))
        traceback.print_exc()
        os._exit(1)  # an ordinary exit would abort, because a thread reads stdin
