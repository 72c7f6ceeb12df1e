"""Malformed and hostile requests, and requests without the key."""

import base64
import gzip
import json
import random
import re
import socket
from typing import Any

import httpx
import pytest
from machine import Machine
from request_fuzz import fuzz
from sdk_scripts import graphql

from kto_sweep import __version__

VIEWER = {"query": "query { viewer { id username entity } }", "operationName": "", "variables": None}


def post(
    machine: Machine, body: Any, key: str | None = None, path: str = "/graphql", **more: Any
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    auth = ("api", machine.address.key if key is None else key)
    return httpx.post(machine.address.url + path, content=content, auth=auth, **more)


def alive(machine: Machine) -> bool:
    return post(machine, VIEWER).json()["data"]["viewer"]["username"] == "local"


def test_ready_says_who_it_is_without_a_key(machine: Machine) -> None:
    identity = httpx.get(f"{machine.address.url}/ready").json()
    assert identity["service"] == "kto-sweep"
    assert identity["version"] == __version__
    assert machine.address.key not in json.dumps(identity)


def test_key_file_is_for_its_owner_only(machine: Machine) -> None:
    assert machine.address.key_file.stat().st_mode & 0o777 == 0o600
    assert len(machine.address.key) == 46


@pytest.mark.parametrize("key", ["", "wrong", "local-" + "0" * 40, "kéy"])
def test_wrong_key_is_401_on_every_route_that_needs_one(machine: Machine, key: str) -> None:
    assert post(machine, VIEWER, key).status_code == 401
    assert post(machine, {}, key, "/files/acme/tests/r/file_stream").status_code == 401


@pytest.mark.parametrize("header", ["", "Basic", "Basic !!!", "Bearer x", "Basic " + "A" * 10_000])
def test_invalid_authorization_is_401(machine: Machine, header: str) -> None:
    response = httpx.post(f"{machine.address.url}/graphql", json=VIEWER, headers={"authorization": header})
    assert response.status_code == 401


def test_other_user_name_with_the_right_key_is_401(machine: Machine) -> None:
    token = base64.b64encode(f"root:{machine.address.key}".encode()).decode()
    headers = {"authorization": f"Basic {token}"}
    assert httpx.post(f"{machine.address.url}/graphql", json=VIEWER, headers=headers).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"query": 1}',
        b'{"query": "query {", "variables": {}}',
        b'{"query": "query { nosuch }"}',
        b'{"query": "query { viewer { id } }", "variables": []}',
        b"[" * 200_000,
        b'{"query": "' + b"{viewer" * 2000 + b'"}',
        json.dumps({"query": "query {" + "viewer { id } " * 3000 + "}"}).encode(),
        json.dumps(
            {"query": "{ a: viewer { id } " + "".join(f"v{i}: viewer {{ id }} " for i in range(900)) + "}"}
        ).encode(),
    ],
)
def test_invalid_query_is_400(machine: Machine, body: bytes) -> None:
    response = post(machine, body)
    assert response.status_code == 400, response.text
    assert response.json()["errors"][0]["message"]


def test_exponential_fragments_are_rejected(machine: Machine) -> None:
    fragments = "".join(
        f'fragment F{i} on Project {{ a: run(name: "x") {{ project {{ ...F{i + 1} }} }} '
        f'b: run(name: "x") {{ project {{ ...F{i + 1} }} }} }} '
        for i in range(11)
    )
    query = f"query {{ project {{ ...F0 }} }} {fragments} fragment F11 on Project {{ id }}"
    response = post(machine, {"query": query})
    assert response.status_code == 400
    assert "more than" in response.text or "deeper" in response.text


def test_logical_errors_are_200_with_errors(machine: Machine) -> None:
    query = 'mutation { stopRun(input: {id: "nosuch"}) { success } }'
    response = post(machine, {"query": query})
    assert response.status_code == 200
    assert "there is no run" in response.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("field", "kind", "value"),
    [
        ("runs(filters: $x) { edges { node { id } } }", "JSONString", {"state": "finished"}),
        ('run(name: "x") { history(minStep: $x) }', "Int64", float("inf")),
        ('run(name: "x") { history(minStep: $x) }', "Int64", "one"),
    ],
)
def test_variable_of_the_wrong_type_is_an_error_with_a_reason(
    machine: Machine, field: str, kind: str, value: object
) -> None:
    query = f"query($x: {kind}) {{ project {{ {field} }} }}"
    response = post(machine, {"query": query, "variables": {"x": value}})
    assert response.status_code == 200
    assert "has invalid value" in response.json()["errors"][0]["message"]


def test_invalid_unicode_is_harmless(machine: Machine) -> None:
    query = "mutation($i: UpsertBucketInput!) { upsertBucket(input: $i) { inserted } }"
    body = json.dumps({"query": query, "variables": {"i": {"name": "\ud800", "modelName": "\ud800"}}})
    assert post(machine, body.encode()).status_code in (200, 400)
    assert alive(machine)


def test_compressed_body_is_read_and_a_zip_bomb_is_rejected(machine: Machine) -> None:
    headers = {"content-encoding": "gzip"}
    assert post(machine, gzip.compress(json.dumps(VIEWER).encode()), headers=headers).status_code == 200
    assert post(machine, gzip.compress(b" " * 100_000_000), headers=headers).status_code == 413
    assert post(machine, b"not gzip", headers=headers).status_code == 400


def test_endless_body_is_rejected(machine: Machine) -> None:
    assert post(machine, b" " * (17 * 2**20)).status_code == 413


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/sdk/otel/v1/metrics", "/nosuch", "/api/v1/x", "/storage/1/x/../../../key"]
)
def test_unknown_path_is_404_or_405(machine: Machine, method: str, path: str) -> None:
    assert httpx.request(method, machine.address.url + path).status_code in (404, 405)


def announce(machine: Machine, *names: str) -> list[dict[str, str]]:
    graphql(
        machine,
        'mutation { upsertBucket(input: {name: "up", entityName: "acme", modelName: "tests"}) { inserted } }',
    )
    query = """mutation($files: [String!]!) { createRunFiles(input: {entityName: "acme", projectName: "tests",
        runName: "up", files: $files}) { files { name uploadUrl } } }"""
    files: list[dict[str, str]] = graphql(machine, query, files=names)["createRunFiles"]["files"]
    return files


@pytest.mark.parametrize(
    "name", ["../../../../evil", "/etc/evil", "a/b/c.txt", "é ☃.txt", "..", "a\\b", "x?y#z%2e"]
)
def test_uploaded_file_is_returned_and_stays_in_the_files_folder(machine: Machine, name: str) -> None:
    url = announce(machine, name)[0]["uploadUrl"]
    assert url.startswith(machine.address.url)
    assert httpx.get(url).status_code == 404
    assert httpx.put(url, content=b"bytes").status_code == 200
    response = httpx.get(url)
    assert response.content == b"bytes"
    assert response.headers["content-disposition"].startswith("attachment")
    inside = [path.read_bytes() for path in (machine.home.server / "files").rglob("*") if path.is_file()]
    assert b"bytes" in inside
    assert all(
        part.isdecimal() for path in (machine.home.server / "files").rglob("*") for part in path.parts[-1:]
    )


def test_wrong_token_neither_reads_nor_writes(machine: Machine) -> None:
    url = announce(machine, "secret")[0]["uploadUrl"]
    httpx.put(url, content=b"right")
    parts = url.split("/")
    for token in ("0" * 32, "", "x", parts[-2][:-1]):
        forged = "/".join([*parts[:-2], token, parts[-1]])
        assert httpx.put(forged, content=b"wrong").status_code == 404
        assert httpx.get(forged).status_code == 404
    assert httpx.get(url).content == b"right"


def test_requests_with_replaced_values_get_an_answer_and_change_no_other_run(machine: Machine) -> None:
    passed, wrong = fuzz(machine.address.url, machine.address.key, 40, random.Random(5))
    assert not wrong
    assert passed["file_stream"] > 30
    assert min(passed.values()) > 8  # most requests must get past the checks of form
    assert alive(machine)


def test_broken_http_is_harmless(machine: Machine) -> None:
    port = int(machine.address.url.rsplit(":", 1)[1])
    for data in (
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\n",
        b"POST /graphql HTTP/1.1\r\nContent-Length: 99\r\n\r\n{",
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(data)
    assert alive(machine)


HOSTILE = "<script>alert(1)</script>&\"'"


def test_pages_hold_no_name_and_no_inline_script(machine: Machine) -> None:
    config = json.dumps({HOSTILE: {"value": HOSTILE}})
    query = """mutation($i: UpsertBucketInput!, $s: UpsertSweepInput!) {
        upsertSweep(input: $s) { sweep { name } } upsertBucket(input: $i) { inserted } }"""
    sweep = json.dumps(
        {"method": "random", "name": HOSTILE, "metric": {"name": HOSTILE}, "parameters": {"a": {"value": 1}}}
    )
    made = graphql(
        machine,
        query,
        i={
            "name": "hostile",
            "entityName": "acme",
            "modelName": HOSTILE,
            "displayName": HOSTILE,
            "config": config,
            "summaryMetrics": json.dumps({HOSTILE: HOSTILE}),
        },
        s={"entityName": "acme", "projectName": HOSTILE, "config": sweep},
    )
    project = "/acme/%3Cscript%3Ealert%281%29%3C%2Fscript%3E%26%22%27"
    name = made["upsertSweep"]["sweep"]["name"]
    for path in ("/", "/acme/tests", "/acme/tests/runs/up"):
        response = machine.http.get(path)
        assert response.status_code == 200
        assert HOSTILE not in response.text
        assert "alert(1)" not in response.text
        assert re.findall(r"<script(?! type=\"module\" src=)", response.text) == []
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
    # A project name with a slash cannot be part of a URL path; such a project appears only in lists.
    assert machine.http.get(f"{project}/sweeps/{name}").status_code == 404


@pytest.mark.parametrize("path", ["/acme/nosuch", "/acme/tests/sweeps/nosuch", "/acme/tests/runs/nosuch"])
def test_page_of_an_unknown_object_is_404(machine: Machine, path: str) -> None:
    announce(machine, "x")
    assert machine.http.get(path).status_code == 404
