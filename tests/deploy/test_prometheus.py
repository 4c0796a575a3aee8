from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from acceptance.contract import table
from holdfast.metrics import Metrics
from installed import Service

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "holdfast.json"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: it comes with Prometheus"
)


def promtool(*arguments: str, cwd: Path = ALERTS.parent) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@needs_promtool
def test_the_alerts_fire_when_they_should_and_not_before() -> None:
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert promtool("check", "rules", ALERTS.name).returncode == 0


@needs_promtool
@pytest.mark.parametrize(
    ("threshold", "another"),
    [
        ("< 0.95", "< 0.94"),
        ("< 0.95", "< 0.951"),
        ("> 0.5", "> 1.5"),
        ('le="1800.0"', 'le="3600.0"'),
        ("> 5e9", "> 6e9"),
        (") >= 3", ") >= 4"),
        (") >= 3", ") >= 2"),
        ("< 0.9\n", "< 0.89\n"),
        ("> backup_alarm_seconds", "> 2 * backup_alarm_seconds"),
        ("(backup_alarm == 1)", "(backup_alarm == 2)"),
        ("or backup_schedule_consecutive_failures", ""),
    ],
)
def test_the_tests_of_the_alerts_notice_another_threshold(
    tmp_path: Path, threshold: str, another: str
) -> None:
    rules = ALERTS.read_text()
    assert rules.count(threshold) == 1
    (tmp_path / "alerts.yml").write_text(rules.replace(threshold, another))
    shutil.copy(ALERTS.with_name("alerts_test.yml"), tmp_path)
    done = promtool("test", "rules", "alerts_test.yml", cwd=tmp_path)
    assert "FAILED" in done.stdout + done.stderr


def test_every_threshold_of_the_contract_has_its_alert() -> None:
    rules = ALERTS.read_text()
    expected = {
        "Backup Success Rate": ("< 95%", "BackupSuccessRateLow", "< 0.95"),
        "Backup Duration": ("> 30 minutes", "BackupDurationLong", 'le="1800.0"'),
        "Backup Size": ("> 5 GB", "BackupSizeLarge", "> 5e9"),
        "Consecutive Failures": ("≥ 3", "BackupConsecutiveFailures", ">= 3"),
        "Retention Compliance": ("< 90%", "BackupRetentionComplianceLow", "< 0.9"),
    }
    promised = {row[0]: row[2] for row in table("Monitoring Metrics")}
    assert promised == {name: words for name, (words, _, _) in expected.items()}
    for _, alert, threshold in expected.values():
        [rule] = re.findall(rf"- alert: {alert}\n(.*?)(?=- alert|\Z)", rules, re.DOTALL)
        assert threshold in rule


@pytest.fixture
def exported(tmp_path: Path) -> set[str]:
    """Names of all samples that there can be."""
    service = Service.make(tmp_path, BACKUP_ALARM_HOURS="24")
    service.back_up()
    installation = service.installation()
    metrics = Metrics(
        installation.settings, installation.state, installation.repository.backups, installation.clock
    )
    families = list(text_string_to_metric_families(metrics.text().decode()))
    # A family without samples, as schedules have none here, is exported as well.
    return {sample.name for family in families for sample in family.samples} | {
        family.name for family in families
    }


def named(expression: str) -> set[str]:
    without_values = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"\bbackup_\w+", without_values))


def test_the_alerts_ask_for_nothing_that_is_not_exported(exported: set[str]) -> None:
    asked = {name for line in _expressions(ALERTS.read_text()) for name in named(line)}
    assert {"backup_success_total", "backup_alarm"} <= asked
    assert asked <= exported


def _expressions(rules: str) -> Iterator[str]:
    for block in re.findall(r"^        expr: (?:\|\n((?:          .*\n)+)|(.*)\n)", rules, re.MULTILINE):
        yield "".join(block)


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads(DASHBOARD.read_text())
    assert isinstance(dashboard["panels"], list)
    return list(dashboard["panels"])


def test_the_dashboard_asks_for_nothing_that_is_not_exported(exported: set[str]) -> None:
    asked = {name for panel in panels() for target in panel["targets"] for name in named(target["expr"])}
    assert asked <= exported
    # Everything that is counted can be seen.
    told = {name for name in exported if name.endswith("_total")}
    assert told <= asked


def test_the_panels_of_the_dashboard_do_not_cover_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


@needs_promtool
def test_every_expression_of_the_dashboard_can_be_parsed(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"panel:{panel['id']}:{target['refId']}",
            "expr": target["expr"].replace("$instance", ".*"),
        }
        for panel in panels()
        for target in panel["targets"]
    ]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


@needs_promtool
def test_what_is_exported_is_as_prometheus_wants_it(tmp_path: Path) -> None:
    service = Service.make(tmp_path, BACKUP_ALARM_HOURS="24")
    service.back_up()
    installation = service.installation()
    metrics = Metrics(
        installation.settings, installation.state, installation.repository.backups, installation.clock
    )
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=metrics.text(), capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
