"""The unmodified wandb SDK logs, uses, changes, links and deletes artifacts."""

from typing import Any

from machine import Machine
from sdk_scripts import run_script

from kto_sweep.server.refused import REGISTRIES

HELPERS = """
import datetime, pathlib
import numpy

def file(name, text):
    path = pathlib.Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return name

def artifact(name, text, type="data", **values):
    made = wandb.Artifact(name, type=type, **values)
    made.add_file(file("f.txt", text))
    return made

def message(call):
    try:
        return [False, call()]
    except Exception as error:
        return str(error)

def read(folder):
    root = pathlib.Path(folder)
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): path.read_text() for path in files}
"""


def run(machine: Machine, code: str, *args: str) -> Any:
    return run_script(machine, HELPERS + code, *args)


def test_an_artifact_is_logged_used_and_extended(machine: Machine) -> None:
    code = """
result = {}
with wandb.init(id="logger") as run:
    logged = wandb.Artifact("weights", type="model", description="d", metadata={"rank": 8})
    logged.add_file(file("a.txt", "hello"))
    logged.add_file("a.txt", name="sub/copy.txt")
    logged.add_reference("file://" + str(pathlib.Path(file("ref.txt", "ref")).absolute()), name="ref.txt")
    logged.ttl = datetime.timedelta(days=2)
    run.log_artifact(logged, aliases=["best"], tags=["t"]).wait()
    result["logged"] = [logged.name, sorted(logged.aliases), logged.tags, logged.metadata, logged.file_count]
    result["size"], result["ttl"] = logged.size, logged.ttl.days
    run.log_model("a.txt", "m")
    run.log_code(".", include_fn=lambda path: path.endswith("a.txt"))
    run.log({"table": wandb.Table(columns=["a"], data=[[1]]), "loss": 0.5})
with wandb.init(id="user") as run:
    used = run.use_artifact("weights:best")
    result["files"] = read(used.download(root="got"))
    result["single"] = pathlib.Path(used.get_entry("sub/copy.txt").download(root="one")).read_text()
    used.verify(root="got")
    result["model"] = pathlib.Path(run.use_model("m:latest")).read_text()
    draft = used.new_draft()
    draft.add_file(file("new.txt", "new"))
    draft.remove("a.txt")
    run.log_artifact(draft).wait()
    result["draft"] = [draft.name, draft.aliases, sorted(draft.manifest.entries)]
    result["draft_files"] = read(draft.download(root="draft"))
    run.use_artifact(artifact("drafted", "x"))
api = wandb.Api()
first = api.artifact("acme/tests/weights:v0")
result["lineage"] = [first.logged_by().id, [run.id for run in first.used_by()], first.aliases]
result["of_runs"] = [
    sorted(made.name for made in api.run("acme/tests/logger").logged_artifacts()),
    sorted(made.name for made in api.run("acme/tests/user").used_artifacts()),
]
result["names"] = [made.name for made in first.files()]
result["types"] = sorted(kind.name for kind in api.artifact_types("acme/tests"))
result["versions"] = [made.version for made in api.artifacts("model", "acme/tests/weights")]
names = ["weights:v0", "weights:best", "weights:v9", "weights:gone", "gone:v0"]
result["exist"] = [api.artifact_exists("acme/tests/" + name) for name in names]
run = api.run("acme/tests/logger")
result["run"] = [run.state, run.summary["loss"], run.summary["table"]["nrows"]]
report(result)
"""
    result = run(machine, code)
    assert result["logged"] == ["weights:v0", ["best", "latest"], ["t"], {"rank": 8}, 3]
    assert (result["size"], result["ttl"]) == (13, 2)
    assert result["files"] == {"a.txt": "hello", "ref.txt": "ref", "sub/copy.txt": "hello"}
    assert result["single"] == result["model"] == "hello"
    assert result["draft"] == ["weights:v1", ["latest"], ["new.txt", "ref.txt", "sub/copy.txt"]]
    assert result["draft_files"] == {"new.txt": "new", "ref.txt": "ref", "sub/copy.txt": "hello"}
    assert result["lineage"] == ["logger", ["user"], ["best"]]
    logged, used = result["of_runs"]
    assert [name for name in logged if not name.startswith("source-")] == [
        "m:v0",
        "run-logger-table:v0",
        "weights:v0",
    ]
    assert len(logged) == 4
    assert used == ["drafted:v0", "m:v0", "weights:v0"]
    assert result["names"] == ["a.txt", "ref.txt", "sub/copy.txt"]
    assert result["types"] == ["code", "data", "model", "run_table"]
    assert result["versions"] == ["v1", "v0"]
    assert result["exist"] == [True, True, False, False, False]
    assert result["run"] == ["finished", 0.5, 1]


def test_versions_parts_and_tables(machine: Machine) -> None:
    code = """
result = {}
with wandb.init(id="versions") as run:
    def log(made, **values):
        run.log_artifact(made, **values).wait()
        return made
    result["versions"] = [log(artifact("d", text), aliases=["x" + text]).version for text in "121"]
    log(artifact("inc", "1"))
    extended = wandb.Artifact("inc", type="data", incremental=True)
    extended.add_file(file("two.txt", "2"))
    result["incremental"] = [log(extended).version, read(extended.download(root="inc")), extended.size]
    for number in range(2):
        part = wandb.Artifact("dist", type="data")
        part.add_file(file(f"p{number}.txt", str(number)))
        run.upsert_artifact(part, distributed_id="all").wait()
    part = wandb.Artifact("dist", type="data")
    part.add_file(file("p2.txt", "2"))
    done = run.finish_artifact(part, distributed_id="all").wait()
    result["distributed"] = [done.version, read(done.download(root="dist"))]
    image = wandb.Image(numpy.zeros((4, 4, 3), dtype="uint8"))
    table = wandb.Table(columns=["a", "image"], data=[[7, image]])
    made = wandb.Artifact("table", type="data")
    made.add(table, "t")
    run.log_artifact(made)
    other = wandb.Artifact("refers", type="data")
    other.add(table, "again")
    log(other)
    run.log({"image": image})
    fast = wandb.Artifact("xxh", type="data", digest_algorithm="XXH128")
    fast.add_file("f.txt")
    result["xxh"] = read(log(fast).download(root="xxh"))
    result["refused"] = [
        message(lambda: log(artifact("d", "z", type="other"))),
        message(lambda: log(artifact("d", "z"), aliases=["v5"])),
        message(lambda: log(artifact("far", "z", storage_region="moon"))),
        message(lambda: run.use_artifact("d:gone")),
    ]
read_back = wandb.Api().artifact("acme/tests/refers:v0").get("again")
result["table"] = [read_back.columns, read_back.data[0][0], read_back.data[0][1].image.size]
api = wandb.Api()
result["aliases"] = [api.artifact("acme/tests/d:" + name).aliases for name in ("v0", "v1")]
report(result)
"""
    result = run(machine, code)
    assert result["versions"] == ["v0", "v1", "v0"]
    assert [sorted(aliases) for aliases in result["aliases"]] == [["latest", "x1"], ["x2"]]
    assert result["incremental"] == ["v1", {"f.txt": "1", "two.txt": "2"}, 2]
    assert result["distributed"] == ["v0", {"p0.txt": "0", "p1.txt": "1", "p2.txt": "2"}]
    assert result["table"] == [["a", "image"], 7, [4, 4]]
    assert result["xxh"] == {"f.txt": "1"}
    kind, alias, region, gone = result["refused"]
    assert "type" in kind
    assert "'v5' is a version, not an alias" in alias
    assert "no storage region 'moon'" in region
    assert "d:gone" in gone


def test_artifacts_and_collections_are_changed_linked_and_deleted(machine: Machine) -> None:
    code = """
result = {}
here = "acme/tests/"
with wandb.init(id="linker") as run:
    for text in "123":
        run.log_artifact(artifact("c", text, type="model")).wait()
    draft = artifact("linked", "x", type="model")
    run.log_artifact(draft)
    result["link"] = run.link_artifact(draft, here + "portfolio", aliases=["prod"]).name
    result["link_model"] = run.link_model(file("mod.bin", "mod"), "registered").qualified_name
    result["registry"] = message(lambda: run.link_artifact(draft, "wandb-registry-model/x"))
api = wandb.Api()
made = api.artifact(here + "c:v1")
made.description, made.tags = "new", ["t1", "t2"]
made.metadata["k"] = 1
made.aliases.append("best")
made.save()
made = wandb.Api().artifact(here + "c:best")
result["changed"] = [made.description, made.metadata, list(made.aliases), sorted(made.tags)]
made.aliases.remove("best")
made.tags = ["t2"]
made.save()
result["changed_back"] = [made.aliases, made.tags]
made.delete()
latest = wandb.Api().artifact(here + "c:latest")
result["with_alias"] = message(latest.delete)
latest.delete(delete_aliases=True)
result["latest"] = wandb.Api().artifact(here + "c:latest").version
link = api.artifact(here + "portfolio:prod")
links = link.source_artifact.linked_artifacts
result["linked"] = [link.is_link, link.source_name, [one.name for one in links]]
link.aliases.append("extra")
link.save()
result["link_aliases"] = [
    sorted(wandb.Api().artifact(here + "portfolio:v0").aliases),
    api.artifact(here + "linked:v0").aliases,
]
link.unlink()
result["unlinked"] = [api.artifact_exists(here + name) for name in ("portfolio:v0", "linked:v0")]
collection = api.artifact_collection("model", here + "c")
collection.name, collection.description, collection.tags = "renamed", "text", ["ct"]
collection.save()
collection = api.artifact_collection("model", here + "renamed")
result["collection"] = [collection.description, list(collection.tags), collection.aliases]
collection.type = "weights"
collection.save()
result["moved"] = [one.name for one in api.artifact_type("weights", "acme/tests").collections()]
result["taken"] = message(lambda: (setattr(collection, "name", "linked"), collection.save()))
api.artifact_collection("weights", here + "renamed").delete()
result["deleted"] = api.artifact_collection_exists(here + "renamed", "weights")
api.run(here + "linker").delete(delete_artifacts=True)
names = [here + "linked:v0", "acme/model-registry/registered:v0"]
result["left"] = [api.artifact_exists(name) for name in names]
report(result)
"""
    result = run(machine, code)
    assert result["link"] == "portfolio:v0"
    assert result["link_model"].startswith("acme/model-registry/registered:")
    assert REGISTRIES.sentence in result["registry"]
    assert result["changed"] == ["new", {"k": 1}, ["best"], ["t1", "t2"]]
    assert result["changed_back"] == [[], ["t2"]]
    assert "has the aliases latest" in result["with_alias"]
    assert result["latest"] == "v0"
    assert result["linked"] == [True, "linked:v0", ["portfolio:v0"]]
    assert result["link_aliases"] == [["extra", "latest", "prod"], ["latest"]]
    assert result["unlinked"] == [False, True]
    assert result["collection"] == ["text", ["ct"], []]
    assert result["moved"] == ["renamed"]
    assert "has an artifact collection linked already" in result["taken"]
    assert result["deleted"] is False
    assert result["left"] == [False, False]


def test_the_command_line_puts_lists_and_gets_artifacts(machine: Machine) -> None:
    (machine.folder / "rows").mkdir()
    (machine.folder / "rows" / "a.jsonl").write_text("{}")
    machine.python("-m", "wandb", "artifact", "put", "rows", "--name", "cli/rows", "--type", "dataset")
    listing = machine.start_python("-m", "wandb", "artifact", "ls", "acme/cli", WANDB_SILENT="false")
    assert "rows:v0" in listing.communicate(timeout=60)[0]
    machine.python("-m", "wandb", "artifact", "get", "acme/cli/rows:latest", "--root", "got_by_cli")
    assert (machine.folder / "got_by_cli" / "a.jsonl").read_text() == "{}"
