"""Where the server of a home was last seen: home/server/address.json."""

import json
from dataclasses import asdict, dataclass

from kto_sweep.home import Home


@dataclass(frozen=True)
class Address:
    """What the file says; it outlives its server, so that the next one takes the same port."""

    url: str
    """As clients on this box reach it, without a slash at the end."""
    port: int
    pid: int
    version: str


def read_address(home: Home) -> Address | None:
    """The last server's address; None when there was none or the file cannot be read."""
    try:
        values = json.loads((home.server / "address.json").read_text(encoding="utf-8"))
        return Address(str(values["url"]), int(values["port"]), int(values["pid"]), str(values["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_address(home: Home, address: Address) -> None:
    """Replace the file; a reader sees the old one or the new one."""
    path = home.server / "address.json"
    fresh = path.with_name("address.json.new")
    fresh.write_text(json.dumps(asdict(address)), encoding="utf-8")
    fresh.replace(path)
