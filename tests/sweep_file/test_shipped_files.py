"""Shipped files are found, and local files take precedence."""

from pathlib import Path

from kto_sweep.shipped_files import find_file, shipped_names, shipped_root


def test_a_shipped_file_is_found_from_anywhere(tmp_path: Path) -> None:
    path = find_file("sweeps/demo.yaml", tmp_path)
    assert path == shipped_root() / "sweeps" / "demo.yaml"
    assert find_file("./examples/support_replies.jsonl", tmp_path) is not None


def test_a_local_file_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    own = tmp_path / "sweeps" / "demo.yaml"
    own.touch()
    assert find_file("sweeps/demo.yaml", tmp_path) == own
    assert find_file(str(own)) == own


def test_nothing_else_of_the_checkout_is_shipped(tmp_path: Path) -> None:
    assert find_file("pyproject.toml", tmp_path) is None
    assert find_file("sweeps/../pyproject.toml", tmp_path) is None
    assert find_file("sweeps", tmp_path) is None
    assert find_file("demo.yaml", tmp_path) is None


def test_shipped_names_are_accepted_by_find_file(tmp_path: Path) -> None:
    names = shipped_names()
    assert {"sweeps/demo.yaml", "sweeps/lr_grid.yaml", "examples/support_replies.jsonl"} <= set(names)
    assert all(find_file(name, tmp_path) is not None for name in names)
