"""Who may read pages and control sweeps: login links, sessions, the key, and `serve --open`."""

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from itsdangerous import TimestampSigner
from machine import Machine
from sdk_scripts import upsert_sweep
from server_harness import GRID, ServerHarness
from starlette.testclient import TestClient

from kto_sweep.local_server import login_tokens
from kto_sweep.local_server.login_tokens import LIFETIME, login_link
from kto_sweep.server.app import build_app

KEY = "local-" + "a" * 40
URL = "http://127.0.0.1:8642"


class Browsers:
    """Browsers of a server in the test process, with its fake clock."""

    def __init__(self, harness: ServerHarness, *, open_on_loopback: bool = False) -> None:
        self.app = build_app(harness.server, {}, https=False, open_on_loopback=open_on_loopback)
        self.key = harness.server.key

    def new(self, **headers: str) -> TestClient:
        """A browser on this machine without cookies, which stays where it is redirected from."""
        client = ("127.0.0.1", 50000)
        return TestClient(self.app, URL, client=client, follow_redirects=False, headers=headers)

    def link(self, path: str) -> str:
        return login_link(f"{URL}{path}", self.key)


@pytest.fixture
def signed_now(harness: ServerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links are made by the server's clock."""
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda self: int(harness.clock()))


@pytest.fixture
def browsers(harness: ServerHarness, signed_now: None) -> Browsers:
    return Browsers(harness)


def test_a_token_is_valid_for_a_day_by_either_clock_and_for_one_key() -> None:
    token = login_tokens.create(KEY)
    found = login_tokens.verify(KEY, token, now=0)
    assert found is None
    [issued] = [TimestampSigner(KEY, salt="login link").unsign(token, return_timestamp=True)[1].timestamp()]
    for now, valid in (
        (0, True),
        (LIFETIME, True),
        (LIFETIME + 1, False),
        (-LIFETIME, True),
        (-LIFETIME - 1, False),
    ):
        assert (login_tokens.verify(KEY, token, issued + now) is not None) == valid
    assert login_tokens.verify(KEY.replace("a", "b"), token, issued) is None
    for forged in ("", ".", "a.b.c", token[:-2], f"x{token}", f"é{token}"):
        assert login_tokens.verify(KEY, forged, issued) is None


def test_a_link_opens_its_page_once_without_the_token(browsers: Browsers, harness: ServerHarness) -> None:
    path = f"/local/uncategorized/sweeps/{harness.sweep(GRID)}"
    link, other_link = browsers.link(path), browsers.link("/")
    browser = browsers.new()
    answer = browser.get(f"{link}&tab=a%26b")
    assert (answer.status_code, answer.headers["location"]) == (303, f"{path}?tab=a%26b")
    assert (answer.headers["referrer-policy"], answer.headers["cache-control"]) == ("no-referrer", "no-store")
    assert browser.get(path).status_code == browser.get(f"/-/data{path}").status_code == 200
    assert browser.get(link).headers["location"] == path  # its own browser needs no second link
    stranger = browsers.new()
    refused = stranger.get(link)
    assert refused.status_code == 401
    assert "This link was used before or has expired." in refused.text
    assert f"<code>kto-sweep view {path.rpartition('/')[2]}</code>" not in refused.text
    assert f"<code>kto-sweep view local/uncategorized/{path.rpartition('/')[2]}</code>" in refused.text
    assert "set-cookie" not in refused.headers
    assert stranger.get(f"/-/data{path}").status_code == 401
    assert stranger.get(other_link).status_code == 303  # links do not replace each other


def test_a_preview_does_not_use_a_link(browsers: Browsers) -> None:
    link = browsers.link("/")
    browser = browsers.new()
    assert browser.head(link).status_code == 401
    assert browser.get(link, headers={"sec-purpose": "prefetch;prerender"}).status_code == 401
    assert browser.get(link).status_code == 303


def test_a_link_expires_and_what_was_used_is_then_forgotten(
    browsers: Browsers, harness: ServerHarness
) -> None:
    used, unused = browsers.link("/"), browsers.link("/")
    assert browsers.new().get(used).status_code == 303
    harness.clock.time += LIFETIME + 1
    assert browsers.new().get(unused).status_code == 401
    assert browsers.new().get(browsers.link("/")).status_code == 303
    count = "SELECT count(*) FROM used_login_link"
    assert harness.server.database.reader().execute(count).fetchone()[0] == 1


@pytest.mark.parametrize(
    "path", ["/%5Cevil.example/x", "/evil.example/%2F..", "/a%3Fb/c%23d", "/a/%3Cscript%3E"]
)
def test_a_link_leads_to_its_own_page_alone(browsers: Browsers, path: str) -> None:
    """Browsers read a backslash as a slash, so `/\\host` unquoted is another host."""
    location = browsers.new().get(browsers.link(path)).headers.get("location", path)
    assert urlsplit(location).netloc == ""
    assert location == path


def test_a_token_is_not_logged(
    browsers: Browsers, harness: ServerHarness, caplog: pytest.LogCaptureFixture
) -> None:
    link = browsers.link("/acme/tests")
    harness.server.database.close()
    assert browsers.new().get(link).status_code == 503
    assert "GET /acme/tests: the database cannot be written" in caplog.text
    assert link.partition("login=")[2] not in caplog.text


def test_only_a_well_formed_name_becomes_part_of_a_command(browsers: Browsers) -> None:
    for path, command in (
        ("/local/kto-sweep/sweeps/ab12", "kto-sweep view ab12"),
        ("/local/kto-sweep/sweeps/$(reboot)", "kto-sweep serve --login"),
        ("/local/kto-sweep/runs/ab12", "kto-sweep serve --login"),
    ):
        assert f"<code>{command}</code>" in browsers.new().get(path).text


def test_pages_and_data_need_a_login_and_no_password_dialog(browsers: Browsers) -> None:
    """A browser shows that dialog for the header www-authenticate."""
    for path in ("/", "/-/data/sweeps", "/-/file/1", "/-/artifact/1/x", "/acme/nosuch"):
        answer = browsers.new().get(path)
        assert answer.status_code == 401
        assert "www-authenticate" not in answer.headers
        assert "kto-sweep serve --login" in answer.text
    for answer in (browsers.new().post("/graphql"), browsers.new().get("/-/trials/acme/nosuch/ab12")):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")


def test_a_change_needs_cookie_csrf_token_and_own_origin(browsers: Browsers, harness: ServerHarness) -> None:
    """The key is not enough either: a browser that was asked for it sends it for other sites, too."""
    action = f"/-/do/local/uncategorized/sweeps/{harness.sweep(GRID)}"
    owner = browsers.new()
    owner.get(browsers.link("/"))
    csrf = {"x-kto-sweep-csrf": owner.get("/-/data/sweeps").json()["csrf"]}
    assert len(csrf["x-kto-sweep-csrf"]) == 32
    key = ("api", browsers.key)
    assert browsers.new().get("/-/data/sweeps", auth=key).json()["csrf"] is None
    refused = [
        browsers.new().post(action, json={"action": "pause"}),
        browsers.new().post(action, json={"action": "pause"}, headers=csrf),
        browsers.new().post(action, json={"action": "pause"}, headers=csrf, auth=key),
        owner.post(action, json={"action": "pause"}),
        owner.post(action, json={"action": "pause"}, headers={"x-kto-sweep-csrf": "é".encode()}),
        owner.post(action, json={"action": "pause"}, headers=csrf | {"origin": "http://evil.example"}),
    ]
    assert [answer.status_code for answer in refused] == [403] * 6
    assert "kto-sweep serve --login" in refused[0].json()["errors"][0]["message"]
    assert owner.post(action, json={"action": "stop"}, headers=csrf).status_code == 200
    assert owner.post(action, json={"action": "resume"}, headers=csrf | {"origin": URL}).status_code == 200


def test_an_open_server_lifts_the_login_for_its_own_machine_alone(harness: ServerHarness) -> None:
    browsers = Browsers(harness, open_on_loopback=True)
    for host in ("127.0.0.1:8642", "localhost:1", "[::1]"):
        assert browsers.new(host=host).get("/").status_code == 200
    for headers in (
        {"x-forwarded-for": "127.0.0.1"},
        {"X-Forwarded-Host": "localhost"},
        {"forwarded": "for=127.0.0.1"},
        {"via": "1.1 cache"},
        {"x-real-ip": "127.0.0.1"},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost.evil.example"},
    ):
        for path in ("/", "/-/data/sweeps"):
            assert browsers.new(**headers).get(path).status_code == 401
    other = TestClient(browsers.app, URL, client=("10.0.0.7", 50000))
    assert other.get("/").status_code == 401


@pytest.fixture
def open_machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine whose server runs with --open."""
    machine = Machine(tmp_path)
    with machine.start("serve", "--open") as process:
        assert process.stdout is not None
        said = "".join(process.stdout.readline() for _ in range(3))
        assert f"Its page: {machine.address.url}/\n" in said
        assert "without a login (--open)" in said
        yield machine
        machine.close()


def test_serve_open_is_for_one_start(open_machine: Machine) -> None:
    """A page of an open server controls sweeps; HTTP/1.0 is what a proxy such as nginx speaks."""
    machine, opened = open_machine, open_machine.address.url
    name = upsert_sweep(machine, GRID)
    csrf = {"x-kto-sweep-csrf": httpx.get(f"{opened}/-/data/sweeps").json()["csrf"]}
    action = f"{opened}/-/do/acme/tests/sweeps/{name}"
    assert httpx.post(action, json={"action": "stop"}, headers=csrf).status_code == 200
    assert httpx.post(action, json={"action": "resume"}).status_code == 403
    host, port = urlsplit(opened).netloc.split(":")
    for version, status in (("1.0", b" 401 "), ("1.1", b" 200 ")):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"GET / HTTP/{version}\r\nHost: {host}:{port}\r\n\r\n".encode())
            assert status in connection.recv(100)
    machine.close()
    assert machine.server_environment()["WANDB_BASE_URL"] == opened
    assert httpx.get(f"{opened}/-/data/sweeps", headers=csrf).status_code == 401
