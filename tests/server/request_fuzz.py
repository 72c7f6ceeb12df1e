"""Requests of clients that are nearly right: valid messages with some of their values replaced."""

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

OWN, OTHER = "fuzzed", "bystander"
"""The run that the requests name, and one that they must not change."""
ENTITY, PROJECT = "acme", "fuzz"
SHARED = {"x-wandb-use-async-filestream": "true"}

VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 2**31, -(2**31) - 1, 2**40 - 1, 2**53 + 1, 2**63, -(2**63) - 1, 10**400),
    *(0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), True, False, None),
    *("", " ", "\0", "\ud800", "é🦜", "NaN", "1e999", "<b>", "a.b", "a/b", "$x", "_step", "x" * 5000),
    *([], {}, [None], {"": 1}, {"a": {"b": [1, {"c": "d"}]}}, {"_type": "image-file", "path": "../x"}),
)
"""What takes the place of a value."""
KEYS = ("", "_step", "_wandb", "loss", "a.b", "\ud800", "x" * 300, "$gt", "_runtime", "eval/common_loss")

RUN = f'entityName: "{ENTITY}", modelName: "{PROJECT}"'
QUERIES = {
    "upsertBucket": """mutation($i: UpsertBucketInput!) {
        upsertBucket(input: $i) { bucket { name config } } }""",
    "upsertSweep": """mutation($i: UpsertSweepInput!) { upsertSweep(input: $i) { sweep { name } } }""",
    "runs by filter": """query($i: JSONString) { project(entityName: "acme", name: "fuzz") {
        runs(filters: $i, first: 5) { edges { node { name config summaryMetrics } } } } }""",
    "sampled history": """query($i: [JSONString!]!) { project(entityName: "acme", name: "fuzz") {
        run(name: "fuzzed") { sampledHistory(specs: $i) } } }""",
}


def mutated(rng: random.Random, value: Any, share: float = 0.15) -> Any:
    """The value with about this share of the values in it replaced."""
    if isinstance(value, dict) and value:
        items = {key: mutated(rng, inner, share) for key, inner in value.items()}
        if rng.random() < share:
            items[rng.choice(KEYS)] = rng.choice(VALUES)
        return items
    if isinstance(value, list) and value:
        return [mutated(rng, inner, share) for inner in value]
    return rng.choice(VALUES) if rng.random() < share else value


def stream_message(rng: random.Random) -> dict[str, Any]:
    """A message of a run's process; its form is right, except sometimes."""
    offset = rng.choice([0, 1, 5, 1000, 2**40 - 1])
    rows = [{"_step": step, "_timestamp": 1.7e9, "loss": 0.5, "nested": {"a": [1, 2]}} for step in range(4)]
    files: dict[str, Any] = {
        "wandb-history.jsonl": {"offset": offset, "content": [_line(rng, row) for row in rows]},
        "wandb-events.jsonl": {"offset": offset, "content": [_line(rng, {"system.cpu": 3.0, "_runtime": 1})]},
        "output.log": {"offset": offset, "content": [str(mutated(rng, "text", 0.5))]},
        "wandb-summary.json": {
            "offset": 0,
            "content": [_line(rng, {"loss": 0.4, "_step": 3, "a": {"b": 1}})],
        },
    }
    kept = {name: chunk for name, chunk in files.items() if rng.random() < 0.6}
    message: dict[str, Any] = {"files": kept, "dropped": 0}
    if rng.random() < 0.1:
        message |= {"complete": True, "exitcode": rng.choice([0, 1, 255, 2**40])}
    if rng.random() < 0.1:
        message["preempting"] = True
    return dict(mutated(rng, message)) if rng.random() < 0.1 else message


def _line(rng: random.Random, row: dict[str, Any]) -> str:
    text = json.dumps(mutated(rng, row))
    return text if rng.random() < 0.95 else text[: rng.randrange(len(text))]


def _bucket(rng: random.Random) -> dict[str, Any]:
    config = {"lr": {"value": 1e-3}, "model": {"value": "tiny"}, "_wandb": {"value": {"t": {"1": [1]}}}}
    fields = {"displayName": "name", "notes": "n", "tags": ["a", "b"], "summaryMetrics": '{"loss": 1}'}
    values = mutated(rng, fields, 0.05) | {"config": json.dumps(mutated(rng, config))}
    return {"name": OWN, "entityName": ENTITY, "modelName": PROJECT, **values}


def _sweep(rng: random.Random) -> dict[str, Any]:
    parameters = {"lr": {"min": 1e-5, "max": 1e-3}, "batch": {"values": [4, 8]}, "seed": {"value": 1}}
    config = {"method": rng.choice(["random", "grid", "bayes"]), "metric": {"name": "loss"}}
    config |= {"parameters": mutated(rng, parameters, 0.05)}
    return {"entityName": ENTITY, "projectName": PROJECT, "config": json.dumps(mutated(rng, config, 0.02))}


def _filter(rng: random.Random) -> str:
    operator = rng.choice(["$eq", "$ne", "$gt", "$lt", "$in", "$regex", "$exists"])
    operand = {"$in": [1, "a"], "$regex": "a.*", "$exists": True}.get(operator, 0.5)
    name = rng.choice(["config.lr", "summary_metrics.loss", "state", "name", "config.a.b", "tags"])
    return json.dumps(mutated(rng, {"$and": [{name: {operator: operand}}, {"name": {"$ne": "x"}}]}))


def _specs(rng: random.Random) -> list[str]:
    return [json.dumps(mutated(rng, {"keys": ["_step", "loss"], "samples": 10}))]


INPUTS: dict[str, Callable[[random.Random], Any]] = {
    "upsertBucket": _bucket,
    "upsertSweep": _sweep,
    "runs by filter": _filter,
    "sampled history": _specs,
}


def fuzz(url: str, key: str, count: int, rng: random.Random) -> tuple[Counter[str], Counter[str]]:
    """Send `count` requests to each route: how many passed its checks, and what went wrong."""
    passed: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    with httpx.Client(base_url=url, auth=("api", key), timeout=60, trust_env=False) as client:
        for name in (OWN, OTHER):
            query = f'mutation {{ upsertBucket(input: {{name: "{name}", {RUN}}}) {{ inserted }} }}'
            client.post("/graphql", json={"query": query}).raise_for_status()
            row = '{"_step": 0, "loss": 0.25}'
            message = {"files": {"wandb-history.jsonl": {"offset": 0, "content": [row]}}}
            client.post(f"/files/{ENTITY}/{PROJECT}/{name}/file_stream", json=message).raise_for_status()
        before = _bystander(client)
        for _ in range(count):
            headers = (
                SHARED | {"x-wandb-async-client-id": str(rng.randrange(3))} if rng.random() < 0.3 else {}
            )
            body = json.dumps(stream_message(rng)).encode()
            answer = client.post(
                f"/files/{ENTITY}/{PROJECT}/{OWN}/file_stream", content=body, headers=headers
            )
            passed["file_stream"] += answer.status_code == 200
            _note(wrong, "file_stream", answer)
            for route, make in INPUTS.items():
                body = json.dumps({"query": QUERIES[route], "variables": {"i": make(rng)}}).encode()
                answer = client.post("/graphql", content=body)
                passed[route] += answer.status_code == 200 and "errors" not in answer.json()
                _note(wrong, route, answer)
        if _bystander(client) != before:
            wrong["the other run was changed"] += 1
    return passed, wrong


def _note(wrong: Counter[str], route: str, answer: httpx.Response) -> None:
    if answer.status_code not in (200, 400):
        wrong[f"{route}: {answer.status_code} {answer.text[:200]}"] += 1


def _bystander(client: httpx.Client) -> Any:
    fields = "state config summaryMetrics history(samples: 10) notes displayName tags"
    project = f'project(entityName: "{ENTITY}", name: "{PROJECT}")'
    query = f'query {{ {project} {{ run(name: "{OTHER}") {{ {fields} }} }} }}'
    return client.post("/graphql", json={"query": query}).raise_for_status().json()
