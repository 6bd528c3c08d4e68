"""The README is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from gateway import config
from gateway.audit import Record
from gateway.cli.main import make_parser
from gateway.errors import Problem
from gateway.metrics import FAMILIES

README = Path("README.md").read_text()


def test_every_setting_is_there_in_order() -> None:
    """The table of settings is the settings."""
    listed = re.findall(r"^\| `([a-z_]+\.[A-Za-z_.0-9]+)` \|", README, re.MULTILINE)

    assert listed == [path for path, _, _ in config.documented(config.Settings)]
    for _, meaning, _ in config.documented(config.Settings):
        assert meaning in README


def test_every_problem_is_there_in_order() -> None:
    """The table of errors is the problem table: status, code, origin, retry and message."""
    rows = re.findall(r"^\| `([a-z_0-9]+)` \| (\d{3}) \| (\S+) \| (\w+) \| (yes|no) \| (\w+) \| (.*) \|$", README, re.MULTILINE)

    assert rows == [
        (problem.slug, str(row.status), "–" if row.code is None else str(row.code), row.origin, "yes" if row.retryable else "no", row.result, row.message)
        for problem in Problem
        for row in [problem.value]
    ]  # fmt: skip


def test_every_record_field_is_there() -> None:
    """Security reads in the README what a record holds."""
    for field in Record.__struct_fields__:
        assert f"`{field}`" in README or any(
            field == f"{number}{end}" for number in ("m1", "m2", "mask") for end in ("_country", "_last2")
        ), field


def test_every_command_line_is_taken() -> None:
    """Each `gateway …` line parses; `sandbox` has its own words."""
    import shlex

    lines = [line.split("#")[0].strip() for line in re.findall(r"^gateway .*$", README, re.MULTILINE)]

    assert len(lines) >= 9
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] != "sandbox":
            assert make_parser(words[0]).parse_args(words).run


def test_the_settings_shown_are_good() -> None:
    """What is shown in pieces parses as one."""
    shown = "\n".join(re.findall(r"^```toml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))

    assert {"accounts", "issuers", "workloads"} <= tomllib.loads(shown).keys()
    assert config.parse(tomllib.loads(shown), {})


@pytest.mark.parametrize("path", ["config/gateway.toml", "config/compose.toml"])
def test_the_shipped_settings_are_good(path: str) -> None:
    """What we ship parses."""
    assert config.parse(tomllib.loads(Path(path).read_text()), {})


def test_ci_runs_what_the_readme_says() -> None:
    """One list of checks, not two."""
    script = Path(".ci/run").read_text()
    line = next(line for line in README.splitlines() if line.startswith("uv run ruff format"))

    assert re.findall(r"^uv run (.*)$", script, re.MULTILINE) == [part.removeprefix("uv run ") for part in line.split(" && ")]
    assert "pip install uv && uv run pytest" in README
    assert "pip install uv && uv run gateway demo" in README


def test_no_file_names_a_registry() -> None:
    """Pins are hashes; where packages come from is the machine's business."""
    assert "://" not in Path("config/requirements.txt").read_text()
    assert not Path("uv.lock").exists() or "uv.lock" in Path(".gitignore").read_text()


def test_each_fault_is_tested_by_what_the_readme_names() -> None:
    """The table of faults says of each row which tests show it."""
    table = README[README.index("| when this breaks |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 20
    for row in table:
        named = re.findall(r"`((?:unit|integration|e2e|chaos|property)/\w+\.py)::(\w+)`", row)
        assert named, row
        for path, test in named:
            assert f"\ndef {test}(" in Path("tests", path).read_text(), (path, test)


def test_every_metric_is_there_in_order() -> None:
    """The table of metrics is what the gateway exports; that this is so, a running one shows elsewhere."""
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| (counter|gauge|histogram) \| (.*?) \| (.*) \|$", README, re.MULTILINE)

    assert rows == [
        (
            family.name + ("_total" if family.kind == "counter" else ""),
            family.kind,
            ", ".join(f"`{label}`" for label in family.labels) or "–",
            family.meaning,
        )
        for family in FAMILIES
    ]
