"""The unmodified wandb SDK logs runs to a real server process and reads them back."""

import signal
import time

import yaml
from machine import Machine
from sdk_scripts import graphql, run_script, script_results, start_script

from kto_sweep.local_server.process import server_pid
from kto_sweep.local_server.start import ensure_server, running_server


def test_login_with_the_right_and_with_a_wrong_key(machine: Machine) -> None:
    code = """
try:
    report(wandb.login(verify=True, key=sys.argv[1]))
except Exception as error:
    report(type(error).__name__)
"""
    assert run_script(machine, code, machine.address.key) is True
    assert run_script(machine, code, "local-" + "f" * 40) == "AuthenticationError"


def test_everything_a_run_logs_is_read_back(machine: Machine) -> None:
    code = """
run = wandb.init(id="full", config={"lr": 1e-3, "opt": {"name": "adam"}}, tags=["a", "b"], notes="n",
                 group="g", job_type="train", name="shown")
for step in range(20):
    run.log({"loss": 1 / (step + 1), "nested": {"deep": step}, "bad": float("nan") if step == 3 else 1.0})
print("hello from the run")
run.summary["best"] = float("inf")
run.alert("title", "text")
wandb.Table(columns=["a"], data=[[1]])
with open("extra.txt", "w") as stream:
    stream.write("some bytes")
run.save("extra.txt", policy="now")
artifact = wandb.Artifact("weights", type="model")
artifact.add_file("extra.txt")
run.log_artifact(artifact)
time.sleep(1.5)  # long enough for a sample of the system metrics
run.finish()

api = wandb.Api()
run = api.run("acme/tests/full")
with run.file("extra.txt").download(root="down", replace=True) as stream:
    downloaded = stream.read()
report({
    "state": run.state, "config": run.config, "summary": {k: run.summary[k] for k in ("loss", "best")},
    "tags": run.tags, "notes": run.notes, "group": run.group, "job_type": run.job_type, "name": run.name,
    "scan": [row["loss"] for row in run.scan_history()],
    "scan_keys": [row for row in run.scan_history(keys=["_step", "nested.deep"])][:2],
    "bad": [row["bad"] for row in run.scan_history()][2:5],
    "samples": len(run.history(samples=5, pandas=False)),
    "by_key": run.history(keys=["loss"], pandas=False)[0],
    "system": bool(run.history(stream="system", pandas=False)[0]["_runtime"]),
    "console": [line.content for line in run.console_logs()],
    "files": sorted(file.name for file in run.files()), "downloaded": downloaded,
    "metadata": run.metadata["program"] is not None, "last_step": run.lastHistoryStep,
})
"""
    result = run_script(machine, code)
    assert result["state"] == "finished"
    assert result["config"] == {"lr": 1e-3, "opt": {"name": "adam"}}
    assert result["summary"] == {"loss": 0.05, "best": float("inf")}
    assert (result["tags"], result["notes"], result["group"]) == (["a", "b"], "n", "g")
    assert (result["job_type"], result["name"]) == ("train", "shown")
    assert result["scan"] == [1 / (step + 1) for step in range(20)]
    assert result["scan_keys"] == [{"_step": 0, "nested.deep": 0}, {"_step": 1, "nested.deep": 1}]
    assert result["bad"][0] == result["bad"][2] == 1.0
    assert result["bad"][1] != result["bad"][1], "NaN comes back as NaN"
    assert result["samples"] == 5
    assert result["by_key"] == {"_step": 0, "loss": 1.0}
    assert result["system"]
    assert "hello from the run" in result["console"]
    assert {"config.yaml", "extra.txt", "output.log", "wandb-metadata.json"} <= set(result["files"])
    assert result["downloaded"] == "some bytes"
    assert result["last_step"] == 19
    result = machine.http.get("/-/data/acme/tests/runs/full").json()
    assert {"loss", "nested.deep"} <= set(result["keys"])
    assert [alert["title"] for alert in result["alerts"]] == ["title"]
    assert result["run"]["config"] == {"lr": 1e-3, "opt.name": "adam"}
    console = machine.http.get("/-/data/acme/tests/runs/full/console").json()
    assert "hello from the run" in [line["text"].strip() for line in console["lines"]]


def test_api_filters_orders_updates_and_deletes(machine: Machine) -> None:
    code = """
for number, loss in enumerate([0.3, 0.1, 0.2, float("nan")]):
    with wandb.init(project="many", config={"lr": number, "o": {"n": number}}, name=f"r{number}") as run:
        run.log({"loss": loss})
        if number == 2:
            run.mark_preempting()
api = wandb.Api()
names = lambda **wanted: [run.name for run in api.runs("acme/many", **wanted)]
result = {
    "best": names(order="+summary_metrics.loss"), "worst": names(order="-summary_metrics.loss"),
    "newest": names(order="-created_at"), "state": names(filters={"state": "finished"}),
    "config": names(filters={"config.lr": {"$gt": 0, "$lt": 3}}), "nested": names(filters={"config.o.n": 2}),
    "or": names(filters={"$or": [{"config.lr": 0}, {"display_name": "r3"}]}), "paged": names(per_page=1),
    "summary": names(filters={"summary_metrics.loss": {"$lte": 0.2}}),
    "regex": names(filters={"display_name": {"$regex": "^r[01]$"}}),
    "length": len(api.runs("acme/many")),
}
run = api.run("acme/many/" + api.runs("acme/many", order="+created_at")[0].id)
run.tags.append("new")
run.notes = "changed"
run.display_name = "renamed"
run.config["extra"] = 5
run.summary["score"] = 7
run.summary.update()
run.update()
again = wandb.Api().run(f"acme/many/{run.id}")
result["updated"] = [again.state, again.tags, again.notes, again.name]
result["added"] = [again.config["extra"], again.summary["score"]]
open("late.txt", "w").write("late")
again.upload_file("late.txt")
result["late"] = again.file("late.txt").size
again.file("late.txt").delete()
result["after"] = [file.name for file in again.files() if file.name == "late.txt"]
again.update_state("pending")
again.update_state("failed")
result["state_by_hand"] = wandb.Api().run(f"acme/many/{again.id}").state
again.delete()
result["left"] = len(wandb.Api().runs("acme/many"))
result["projects"] = sorted(project.name for project in wandb.Api().projects("acme"))
report(result)
"""
    result = run_script(machine, code)
    assert result["best"] == ["r1", "r2", "r0", "r3"]
    assert result["worst"] == ["r0", "r2", "r1", "r3"]
    assert result["newest"] == ["r3", "r2", "r1", "r0"]
    assert result["state"] == result["paged"] == ["r0", "r1", "r2", "r3"]
    assert result["config"] == ["r1", "r2"]
    assert result["nested"] == ["r2"]
    assert result["or"] == ["r0", "r3"]
    assert result["summary"] == ["r1", "r2"]
    assert result["regex"] == ["r0", "r1"]
    assert result["length"] == 4
    assert result["updated"] == ["finished", ["new"], "changed", "renamed"]
    assert result["added"] == [5, 7]
    assert (result["late"], result["after"], result["state_by_hand"]) == (4, [], "failed")
    assert result["left"] == 3
    assert "many" in result["projects"]


def test_restoring_a_missing_file_is_an_error(machine: Machine) -> None:
    code = """
with wandb.init(id="files") as run:
    with open("here.txt", "w") as file:
        file.write("here")
    run.save("here.txt")
path = "acme/tests/files"
result = [wandb.restore("here.txt", run_path=path, root="back").read()]
result.append(wandb.Api().run(path).file("./here.txt").size)
result.append(wandb.Api().run(path).file("gone.txt").size)
try:
    wandb.restore("gone.txt", run_path=path, root="back")
except ValueError as error:
    result.append(str(error))
report(result)
"""
    restored, size, none, refused = run_script(machine, code)
    assert (restored, size, none) == ("here", 4, 0)
    assert "gone.txt not found" in refused


def test_the_command_line_restores_a_configuration_without_git(machine: Machine) -> None:
    run_script(machine, 'wandb.init(id="settled", config={"lr": 0.25}).finish()')
    machine.python("-m", "wandb", "restore", "acme/tests/settled")
    restored = yaml.safe_load((machine.folder / "wandb" / "config.yaml").read_text())
    assert restored["lr"] == {"value": 0.25}


def test_resume_continues_and_a_restart_overwrites_step_by_step(machine: Machine) -> None:
    code = """
def log(resume, count, **config):
    with wandb.init(id="again", resume=resume, config=config) as run:
        for value in range(count):
            run.log({"x": value * (10 if resume is None else 1)})
def read():
    run = wandb.Api().run("acme/tests/again")
    return [[row["_step"], row["x"]] for row in run.scan_history()], run.config
result = []
for resume, count, config in [("allow", 2, {"a": 1}), ("must", 2, {"b": 2}), (None, 2, {"c": 3})]:
    log(resume, count, **config)
    result.append(read())
for resume, name in [("never", "again"), ("must", "nosuch")]:
    try:
        wandb.init(id=name, resume=resume)
    except wandb.errors.UsageError as error:
        result.append("refused")
report(result)
"""
    first, resumed, overwritten, never, must = run_script(machine, code)
    assert first == [[[0, 0], [1, 1]], {"a": 1}]
    assert resumed == [[[0, 0], [1, 1], [2, 0], [3, 1]], {"a": 1, "b": 2}]
    assert overwritten == [[[0, 0], [1, 10], [2, 0], [3, 1]], {"a": 1, "b": 2, "c": 3}]
    assert never == must == "refused"


def test_offline_run_is_synced_twice_without_doubling(machine: Machine) -> None:
    code = """
import glob, subprocess
with wandb.init(id="off", mode="offline", config={"a": 1}, tags=["t"]) as run:
    for value in range(30):
        run.log({"x": value})
folder = glob.glob("wandb/offline-run-*-off")[0]
for _ in range(2):
    subprocess.run([sys.executable, "-m", "wandb", "sync", "--include-synced", folder], check=True)
run = wandb.Api().run("acme/tests/off")
report([run.state, run.config, run.tags, [row["x"] for row in run.scan_history()]])
"""
    assert run_script(machine, code) == ["finished", {"a": 1}, ["t"], list(range(30))]


LONG_RUN = """
with wandb.init(id=sys.argv[1]) as run:
    for value in range(int(sys.argv[2])):
        run.log({"x": value})
        time.sleep(0.05)
"""
READ = """
run = wandb.Api().run("acme/tests/" + sys.argv[1])
report([run.state, [row["x"] for row in run.scan_history()]])
"""


def row_count(machine: Machine, name: str) -> int:
    query = """query($name: String!) { project(entityName: "acme", name: "tests") {
        run(name: $name) { historyLineCount } } }"""
    project = graphql(machine, query, name=name)["project"]
    return int(project["run"]["historyLineCount"]) if project and project["run"] else 0


def wait_for_rows(machine: Machine, name: str) -> int:
    """How many rows of the run have arrived, once there are any."""
    deadline = time.monotonic() + 30
    while (rows := row_count(machine, name)) == 0:
        assert time.monotonic() < deadline, "no row has come"
        time.sleep(0.05)
    return rows


def test_server_killed_mid_run_and_restarted_loses_nothing(machine: Machine) -> None:
    process = start_script(machine, LONG_RUN, "chaos", "60")
    rows = wait_for_rows(machine, "chaos")
    pid = server_pid(machine.home)
    assert pid is not None
    kill(pid)
    assert running_server(machine.home) is None
    again = ensure_server(machine.home)
    assert again.url == machine.address.url, "agents that outlive the server must find it"
    assert again.key == machine.address.key
    assert row_count(machine, "chaos") >= rows
    script_results(process)
    assert run_script(machine, READ, "chaos") == ["finished", list(range(60))]


def kill(pid: int) -> None:
    import os

    os.kill(pid, signal.SIGKILL)


def test_sync_completes_an_interrupted_run_without_losing_rows(machine: Machine) -> None:
    process = start_script(machine, LONG_RUN, "broken", "1000")
    wait_for_rows(machine, "broken")
    process.kill()
    process.communicate()
    state, before = run_script(machine, READ, "broken")
    assert state == "running"
    assert before == list(range(len(before)))
    code = """
import glob, subprocess
folder = glob.glob("wandb/run-*-broken")[0]
subprocess.run([sys.executable, "-m", "wandb", "sync", "--no-skip-online", folder], check=True)
"""
    run_script(machine, code)
    _, after = run_script(machine, READ, "broken")
    assert after == list(range(len(after)))
    assert len(after) >= len(before) > 0
