"""A grid of a sweep's best configurations with new seeds: what its file has, and that it runs."""

import pytest
import python_forkserver
import yaml
from machine import Machine
from sweep_views import METRIC, ranked, sweep_view, trial
from untrained_trials import SWEEP, run_trials

from kto_sweep.alerts import PARAMETER
from kto_sweep.errors import UsageError
from kto_sweep.search import grid
from kto_sweep.sweep.follow_up import file_name
from kto_sweep.sweep.replication import replicate
from kto_sweep.sweep.view import SweepView
from kto_sweep.sweep_file.sweep_config import check_sweep_text
from kto_sweep.trial import Trial

RATES = {"learning_rate": {"values": [1e-5, 2e-5, 4e-5]}}


def cells(view: SweepView, top: int = 9, seeds: int = 2) -> list[Trial]:
    """The trials of the file, in grid order."""
    new = replicate(view, ranked(view)[:top], seeds)
    checked = check_sweep_text(new.text(), "file.yaml")
    assert checked.sweep is not None, checked.problems
    return [Trial.from_config(config) for _, config in grid.cells(checked.sweep.space)]


def test_the_best_configurations_get_new_seeds_and_nothing_else_is_trained():
    view = sweep_view(
        {**RATES, "beta": {"min": 0.05, "max": 0.5}},
        trial(1, 0.4, learning_rate=1e-5, beta=0.1),
        trial(2, 0.3, learning_rate=4e-5, beta=0.3),
        trial(3, 0.5, learning_rate=2e-5, beta=0.2),
        trial(4, 0.1, "failed", learning_rate=2e-5, beta=0.4),
        method="random",
    )
    assert [(t.learning_rate, t.beta, t.seed) for t in cells(view, top=2)] == [
        (4e-5, 0.3, 43),
        (4e-5, 0.3, 44),
        (1e-5, 0.1, 43),
        (1e-5, 0.1, 44),
    ]


def test_seeds_of_the_sweep_are_not_used_again():
    view = sweep_view(
        {**RATES, "seed": {"values": [7, 8, 10]}},
        *(trial(seed, 0.1, learning_rate=1e-5, seed=seed) for seed in (7, 8, 10)),
    )
    assert [t.seed for t in cells(view, seeds=3)] == [9, 11, 12]


def test_seeds_after_the_last_one_start_at_zero():
    view = sweep_view(
        {**RATES, "seed": {"value": 2**32 - 1}}, trial(1, 0.1, learning_rate=1e-5, seed=2**32 - 1)
    )
    assert [t.seed for t in cells(view)] == [0, 1]


def test_another_sweep_of_replicates_adds_seeds_to_those_of_the_first():
    configurations = [{"learning_rate": 1e-5, "beta": 0.1}, {"learning_rate": 2e-5, "beta": 0.3}]
    view = sweep_view(
        {"configuration": {"values": configurations}, "seed": {"values": [43, 44]}},
        *(
            trial(10 * number + seed, 0.1 * number, configuration=settings, seed=seed)
            for number, settings in enumerate(configurations, start=1)
            for seed in (43, 44)
        ),
        name="lr-replicates",
    )
    again = replicate(view, ranked(view)[:1], 2)
    assert again.config["parameters"]["configuration"] == {"values": configurations[:1]}
    assert (again.config["name"], again.reuse) == ("lr-replicates-2", "local/kto-sweep/ab12")
    assert str(again.price) == "2 trials, about 0.033 GPU-hours"
    assert [(t.learning_rate, t.beta, t.seed) for t in cells(view, top=1)] == [
        (1e-5, 0.1, seed) for seed in (43, 44, 45, 46)
    ]
    # With one configuration left, it is fixed in that sweep, and still the one to replicate.
    single = sweep_view(
        {"configuration": {"values": configurations[:1]}, "seed": {"values": [45, 46]}},
        trial(1, 0.1, configuration=configurations[0], seed=45),
    )
    assert [(t.learning_rate, t.seed) for t in cells(single)] == [(1e-5, seed) for seed in (45, 46, 47)]


def test_groups_keep_their_names_and_lose_what_is_searched():
    section = {
        "lora": {"parameters": {"r": {"values": [4, 8]}, "dropout": {"value": 0.1}}},
        "training": {"parameters": {"seed": {"value": 5}, "learning_rate": {"values": [1e-5, 2e-5]}}},
    }
    view = sweep_view(
        section,
        trial(1, 0.1, lora={"r": 8, "dropout": 0.1}, training={"seed": 5, "learning_rate": 2e-5}),
    )
    assert [(t.lora_r, t.lora_dropout, t.learning_rate, t.seed) for t in cells(view)] == [
        (8, 0.1, 2e-5, 6),
        (8, 0.1, 2e-5, 7),
    ]
    parameters = replicate(view, ranked(view), 1).config["parameters"]
    assert parameters["lora"] == {"parameters": {"dropout": {"value": 0.1}}}
    assert "training" not in parameters


def test_alerts_and_objectives_stay_and_what_ends_trials_early_does_not():
    objectives = [
        {"name": "eval/common_loss", "goal": "minimize"},
        {"name": "trial/seconds", "goal": "minimize"},
    ]
    view = sweep_view(
        {**RATES, PARAMETER: {"value": "kl_raw > 10; loss > 2"}},
        trial(1, 0.1, learning_rate=1e-5),
        method="bayes",
        run_cap=20,
        metric={**METRIC, "target": 0.2, "impute": "worst"},
        early_terminate={"type": "hyperband", "min_iter": 1},
        kto_sweep={"objectives": objectives, "replicates": 3},
        description="why",
    )
    new = replicate(view, ranked(view), 2)
    file = yaml.safe_load(new.text())
    assert file["kto_sweep"] == {"objectives": objectives, "alerts": ["kl_raw > 10", "loss > 2"]}
    assert (file["metric"], file["description"]) == (METRIC, "why")
    assert not {"run_cap", "early_terminate"} & file.keys()
    assert new.notes == ("early_terminate, metric.target left out: replicates train to their end",)
    assert len(cells(view)) == 2


@pytest.mark.parametrize("flag", [["--seed=7"], ["--seed", "7"], ["--seed=${envvar:SEED_OF_BOX}"]])
def test_a_seed_that_the_command_fixes_gives_way(flag):
    command = ["${env}", "${interpreter}", "${program}", "--beta=0.5", *flag, "${args}"]
    view = sweep_view(
        # As registered: what the command fixes is a parameter too.
        {**RATES, "beta": {"value": 0.5}, "seed": {"value": 7}},
        trial(1, 0.1, learning_rate=1e-5, beta=0.5, seed=7),
        command=command,
    )
    file = replicate(view, ranked(view), 2).config
    assert file["command"] == ["${env}", "${interpreter}", "${program}", "--beta=0.5", "${args}"]
    assert [(t.beta, t.seed) for t in cells(view)] == [(0.5, 8), (0.5, 9)]


def test_the_price_is_that_of_trials_like_the_chosen_ones():
    """Trials 1 and 2 trained together: 60 s of each took 60 s of the GPU."""
    view = sweep_view(
        RATES, *(trial(1, loss, learning_rate=rate) for loss, rate in ((0.1, 1e-5), (0.2, 2e-5)))
    )
    assert str(replicate(view, ranked(view), 4).price) == "8 trials, about 0.067 GPU-hours"


def test_without_a_finished_trial_there_is_nothing_to_replicate():
    view = sweep_view(RATES, trial(1, 0.1, "running", learning_rate=1e-5))
    with pytest.raises(UsageError, match="no finished trial with a value of eval/common_loss"):
        replicate(view, ranked(view), 2)


def test_names_are_untrusted():
    view = sweep_view(
        RATES, trial(1, 0.1, learning_rate=1e-5), name="../a b\nmethod: random\n# \x1b[31m" + "x" * 99
    )
    new = replicate(view, ranked(view), 1)
    assert yaml.safe_load(new.text())["method"] == "grid"
    name = file_name(new.config["name"])
    assert "/" not in name
    assert name.startswith("a-bmethod-random-31m")


def test_replicates_on_the_embedded_server(machine: Machine) -> None:
    first = machine.create_sweep(SWEEP)["id"]
    run_trials(machine, first)
    printed = machine.run("replicate", "--top", "2", "--seeds", "2", "--dry-run")
    assert [path.name for path in machine.folder.glob("*.yaml")] == ["sweep.yaml"]
    made = machine.json("replicate", first, "--top", "2", "--seeds", "2")
    assert (machine.folder / made["file"]).read_text() == printed
    assert (made["file"], made["trials_to_train"], made["from"]) == (
        f"{first}-replicates.yaml",
        4,
        f"local/kto-sweep/{first}",
    )
    assert "already exists" in machine.run("replicate", first, code=2)
    done = run_trials(machine, made["id"])
    # The loss of an untrained trial grows with its rate, so the two of the lower rate are the best.
    # Sorted: the second agent of a box starts with several trials at once, which end in any order.
    assert sorted((rate, batch) for _, rate, batch in done) == [(0.001, 1)] * 2 + [(0.001, 2)] * 2
    compared = machine.json("compare")
    settings = {"configuration.batch_size", "configuration.learning_rate", "seed"}
    assert set(compared["parameters"]) <= settings
    assert sorted(len(each["run_ids"]) for each in compared["configurations"]) == [2, 2]
    status = machine.json("status")
    assert (status["id"], status["state"], status["finished"]) == (made["id"], "FINISHED", 4)


@pytest.mark.slow
def test_the_file_is_one_that_wandbs_own_tool_registers(machine: Machine) -> None:
    first = machine.create_sweep(SWEEP)["id"]
    run_trials(machine, first, most=2)
    file = machine.folder / "again.yaml"
    file.write_text(machine.run("replicate", first, "--top", "2", "--seeds", "1", "--dry-run"))
    command = ("-m", "wandb", "sweep", "--project", "kto-sweep", "--entity", "local", str(file))
    environ = machine.environment | machine.server_environment() | {"WANDB_SILENT": "false"}
    said = python_forkserver.run(command, machine.folder, environ)
    assert said.returncode == 0, said.stdout + said.stderr
    sweep = (said.stdout + said.stderr).split("kto-sweep/sweeps/")[1].split()[0].strip()
    assert len(run_trials(machine, sweep)) == 2
