"""Lines of values, and files that PyYAML cannot or should not read."""

import pytest

from kto_sweep.sweep_file.yaml_source import YamlSource, read_yaml

ALIAS_CHAIN = "k0: &k0 [x]\n" + "".join(f"k{n}: &k{n} [*k{n - 1}]\n" for n in range(1, 300))
ALIAS_BOMB = "k0: &k0 [x]\n" + "".join(
    f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
MERGE_BOMB = ALIAS_BOMB.replace("[x]", "{x: 1}").replace("[", "{<<: [").replace("]", "]}")
TEXT = """\
# comment
top: 1
block:
  flow: {a: 1,
    b: [x, y,
      z]}
  items:
    - first
    -
      deep: 2
  empty:
base: &base
  q: 1
merged:
  <<: *base
  own: 2
again: *base
"""


def read(text: str) -> YamlSource:
    source, problems = read_yaml(text)
    assert problems == []
    assert source is not None
    return source


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("block",), 3),
        (("block", "flow"), 4),
        (("block", "flow", "b"), 5),
        (("block", "flow", "b", "2"), 6),
        (("block", "items"), 7),
        (("block", "items", "0"), 8),
        (("block", "items", "1", "deep"), 10),
        (("block", "empty"), 11),
        (("merged", "q"), 13),
        (("merged", "own"), 16),
        (("again", "q"), 13),
        (("block", "not", "there"), 3),
        (("nowhere",), 2),
    ],
)
def test_lines(path: tuple[str, ...], line: int) -> None:
    assert read(TEXT).line(path) == line


def test_data_are_those_of_pyyaml_but_for_dates() -> None:
    source = read(TEXT + "day: 2024-13-45\n")
    assert source.data["merged"] == {"q": 1, "own": 2}
    assert source.data["day"] == "2024-13-45"
    assert source.data["block"]["empty"] is None


@pytest.mark.parametrize(
    ("text", "line", "what", "hint"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "not YAML", "close the bracket"),
        ("a:\n\t- 1\n", 2, "column 1", "spaces"),
        ("a: b: c\n", 1, "mapping values are not allowed", "quote"),
        ("a: 1\n---\nb: 2\n", 2, "document", "remove ---"),
        ("a: 'open\n", 2, "not YAML", ""),
        ("a: &x [*x]\n", 1, "contains itself", ""),
        ("a: {b: 1, b: 2}\n", 1, "b is set here and in line 1", "remove one"),
        ("a: !!python/object:os.system 1\n", 1, "could not determine a constructor", ""),
        ("? [1, 2]\n: 3\n", 1, "not YAML", ""),
        ("a: \x07\n", 1, "not YAML", ""),
        ("a: 1\nb: \x07\n", 2, "not YAML", ""),
        (f"a: 1\nb: {'9' * 5000}\n", 2, "5000 digits", ""),
        (f"a: 1\nb: {'[' * 5000}\n", 2, "more than 100 deep", ""),
        (f"a: 1\nb: {'[{c: ' * 300}x{'}]' * 300}\n", 2, "more than 100 deep", ""),
        (ALIAS_CHAIN, 101, "more than 100 deep, with aliases", ""),
        (ALIAS_BOMB, 6, "more than 100,000 values", "aliases"),
        (MERGE_BOMB, 6, "more than 100,000 values", "aliases"),
    ],
)
def test_unreadable_yaml_is_one_problem(text: str, line: int, what: str, hint: str) -> None:
    source, (problem,) = read_yaml(text)
    assert source is None
    assert problem.line == line
    assert what in problem.what
    assert hint in problem.hint


def test_an_empty_file_has_no_data() -> None:
    assert read("# nothing\n").data is None
