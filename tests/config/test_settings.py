from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.config import BackupConfig, load_settings
from holdfast.errors import ConfigError

PUBLIC = "bm90IGEga2V5LCBidXQgb2YgdGhpcnR5LXR3byBieSE="
FINGERPRINT = "SHA256:89AB-CDEF-0123-4567-89AB-CDEF-0123-4567"


def test_without_any_configuration_the_contracts_defaults_hold(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {})
    assert settings.root == tmp_path.resolve()
    assert settings.backup_dir == settings.root / "backups"
    assert (settings.retention_days, settings.compression_level) == (30, 9)
    assert settings.max_bytes == 10 * 10**9
    assert settings.encrypt
    assert (settings.include_models, settings.include_config, settings.include_logs) == (True, True, False)
    assert settings.schedule == "daily"
    assert settings.tags == ()
    assert settings.database_timeout == 30
    assert (settings.encryption_key, settings.key_file, settings.config_file) == (None, None, None)
    assert (settings.hooks_before, settings.hooks_after) == ((), ())
    assert settings.log_level is None
    assert (settings.notification_email, settings.smtp_server, settings.smtp_port) == (
        None,
        "smtp.gmail.com",
        587,
    )
    assert (settings.smtp_username, settings.smtp_password) == (None, None)
    assert (settings.apprise_urls, settings.ping_url, settings.alarm_hours) == ((), None, None)
    assert (settings.metrics_port, settings.metrics_address) == (None, "127.0.0.1")
    assert (settings.metrics_textfile, settings.drill_command) == (None, None)
    assert settings.keep == {}
    assert settings.log_format == "text"


def test_parity_is_off_and_is_for_the_deduplicating_format_alone(tmp_path: Path) -> None:
    assert not load_settings(tmp_path, {"BACKUP_FORMAT": "dedup"}).parity
    assert load_settings(tmp_path, {"BACKUP_FORMAT": "dedup", "BACKUP_PARITY": "true"}).parity
    (tmp_path / "holdfast.toml").write_text('[backup]\nformat = "dedup"\nparity = true\n')
    assert load_settings(tmp_path, {}).parity
    with pytest.raises(ConfigError, match="parity") as refused:
        load_settings(tmp_path, {"BACKUP_FORMAT": "archive"})
    assert "BACKUP_FORMAT=dedup" in refused.value.hint
    with pytest.raises(ConfigError, match="BACKUP_PARITY is 'some': it must be true or false"):
        load_settings(tmp_path, {"BACKUP_PARITY": "some"})


def test_the_root_is_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).root == tmp_path.resolve()


def test_the_environment_is_the_process_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_RETENTION_DAYS", "7")
    assert load_settings(tmp_path).retention_days == 7


def test_a_root_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere is not a directory"):
        load_settings(tmp_path / "nowhere", {})


def test_every_variable_does_what_the_contract_says(tmp_path: Path) -> None:
    settings = load_settings(
        tmp_path,
        {
            "BACKUP_DIR": "elsewhere",
            "BACKUP_RETENTION_DAYS": "7",
            "BACKUP_COMPRESSION_LEVEL": "1",
            "BACKUP_MAX_SIZE_GB": "0.5",
            "BACKUP_ENCRYPT": "false",
            "BACKUP_TRUST_WRITERS": f"{FINGERPRINT}  {PUBLIC}",
            "ENCRYPTION_KEY": "correct horse",
            "DATABASE_URL": "sqlite:///x.db",
            "LOG_LEVEL": "debug",
            "LOG_FORMAT": "JSON",
            "NOTIFICATION_EMAIL": "admin@example.com",
            "SMTP_SERVER": "mail.example.com",
            "SMTP_PORT": "25",
            "SMTP_USERNAME": "backups@example.com",
            "SMTP_PASSWORD": "pass word",
            "BACKUP_APPRISE_URLS": "slack://a/b/c  json://localhost:8080/x",
            "BACKUP_PING_URL": "https://hc.example.com/ping/1",
            "BACKUP_ALARM_HOURS": "26.5",
            "BACKUP_METRICS_PORT": "9105",
            "BACKUP_METRICS_ADDRESS": "::",
            "BACKUP_METRICS_TEXTFILE": "metrics/holdfast.prom",
        },
    )
    assert settings.backup_dir == tmp_path.resolve() / "elsewhere"
    assert (settings.retention_days, settings.compression_level) == (7, 1)
    assert settings.max_bytes == 500_000_000
    assert not settings.encrypt
    assert settings.trust_writers == (FINGERPRINT, PUBLIC)
    assert settings.encryption_key is not None
    assert settings.encryption_key.get_secret_value() == "correct horse"
    assert [database.name for database in settings.databases] == ["main"]
    assert (settings.log_level, settings.log_format) == ("DEBUG", "json")
    assert settings.notification_email == "admin@example.com"
    assert (settings.smtp_server, settings.smtp_port) == ("mail.example.com", 25)
    assert settings.smtp_username == "backups@example.com"
    assert settings.smtp_password is not None
    assert settings.smtp_password.get_secret_value() == "pass word"
    assert [url.get_secret_value() for url in settings.apprise_urls] == [
        "slack://a/b/c",
        "json://localhost:8080/x",
    ]
    assert settings.ping_url is not None
    assert settings.ping_url.get_secret_value() == "https://hc.example.com/ping/1"
    assert settings.alarm_hours == 26.5
    assert (settings.metrics_port, settings.metrics_address) == (9105, "::")
    assert settings.metrics_textfile == tmp_path.resolve() / "metrics" / "holdfast.prom"


def test_code_wins_over_the_environment_over_dotenv_over_the_file_over_defaults(tmp_path: Path) -> None:
    def level(environ: dict[str, str], config: BackupConfig | None = None) -> int:
        return load_settings(tmp_path, environ, config).compression_level

    assert level({}) == 9
    (tmp_path / "holdfast.toml").write_text("[backup]\ncompression_level = 1\n")
    assert level({}) == 1
    (tmp_path / ".env").write_text("BACKUP_COMPRESSION_LEVEL=2\n")
    assert level({}) == 2
    assert level({"BACKUP_COMPRESSION_LEVEL": "3"}) == 3
    assert level({"BACKUP_COMPRESSION_LEVEL": "3"}, BackupConfig(compression_level=4)) == 4


def test_all_of_a_backup_config_wins_even_what_it_leaves_at_its_default(tmp_path: Path) -> None:
    environ = {"BACKUP_ENCRYPT": "no", "BACKUP_DIR": "elsewhere"}
    settings = load_settings(tmp_path, environ, BackupConfig(include_logs=True, max_backup_size_gb=2))
    assert settings.encrypt
    assert settings.include_logs
    assert settings.max_bytes == 2 * 10**9
    assert settings.backup_dir.name == "elsewhere"


def test_a_backup_config_that_was_spoiled_after_it_was_made_is_refused(tmp_path: Path) -> None:
    config = BackupConfig()
    config.compression_level = 12
    with pytest.raises(ConfigError, match=r"BackupConfig.compression_level is 12"):
        load_settings(tmp_path, {}, config)


def test_a_wrong_value_is_refused_even_where_another_hides_it(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_text("[backup]\ncompression_level = 12\n")
    with pytest.raises(ConfigError, match=r"backup.compression_level in .*holdfast.toml is 12"):
        load_settings(tmp_path, {"BACKUP_COMPRESSION_LEVEL": "3"})


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("BACKUP_DIR", "", "a path"),
        ("BACKUP_DIR", "  ", "a path"),
        ("BACKUP_RETENTION_DAYS", "0", "from 1 to"),
        ("BACKUP_RETENTION_DAYS", "a month", "from 1 to"),
        ("BACKUP_RETENTION_DAYS", "", "from 1 to"),
        ("BACKUP_COMPRESSION_LEVEL", "12", "from 0 to 9"),
        ("BACKUP_COMPRESSION_LEVEL", "-1", "from 0 to 9"),
        ("BACKUP_MAX_SIZE_GB", "-10", "above 0"),
        ("BACKUP_MAX_SIZE_GB", "1e999", "above 0"),
        ("BACKUP_ENCRYPT", "maybe", "true or false"),
        ("BACKUP_TRUST_WRITERS", "", "fingerprints"),
        ("BACKUP_TRUST_WRITERS", "backup-host", "fingerprints"),
        ("LOG_LEVEL", "loud", "DEBUG, INFO"),
        ("LOG_FORMAT", "xml", "text or json"),
        ("NOTIFICATION_EMAIL", "admin", "one e-mail address"),
        ("NOTIFICATION_EMAIL", "a@example.com, b@example.com", "one e-mail address"),
        ("SMTP_SERVER", "smtp://mail.example.com", "the address of a host"),
        ("SMTP_PORT", "0", "from 1 to 65535"),
        ("BACKUP_ALARM_HOURS", "0", "above 0"),
        ("BACKUP_ALARM_HOURS", "nan", "above 0"),
        ("BACKUP_METRICS_PORT", "70000", "or 0 for none"),
        ("BACKUP_METRICS_ADDRESS", "my host", "without a port"),
    ],
)
def test_a_wrong_variable_is_refused_by_name_value_and_range(
    tmp_path: Path, variable: str, value: str, allowed: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{variable} is ") as caught:
        load_settings(tmp_path, {variable: value})
    assert (repr(value) if value else "empty") in str(caught.value)
    assert allowed in str(caught.value)

    (tmp_path / ".env").write_text(f"{variable}='{value}'\n")
    with pytest.raises(ConfigError, match=rf"^{variable} in .*\.env is "):
        load_settings(tmp_path, {})


@pytest.mark.parametrize(
    "variable",
    [
        "ENCRYPTION_KEY",
        "DATABASE_URL",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "HOLDFAST_CONFIG",
        "NOTIFICATION_EMAIL",
        "SMTP_SERVER",
        "SMTP_PORT",
        "SMTP_USERNAME",
        "SMTP_PASSWORD",
        "BACKUP_APPRISE_URLS",
        "BACKUP_PING_URL",
        "BACKUP_ALARM_HOURS",
        "BACKUP_METRICS_PORT",
        "BACKUP_METRICS_ADDRESS",
        "BACKUP_METRICS_TEXTFILE",
    ],
)
def test_a_blank_variable_that_is_optional_counts_as_unset(tmp_path: Path, variable: str) -> None:
    assert load_settings(tmp_path, {variable: ""}) == load_settings(tmp_path, {})


def test_dotenv_is_read_for_our_variables_and_nothing_else_in_it_matters(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "# the service\nexport BACKUP_RETENTION_DAYS=12 # days\nMAIL_PORT=none of ours\n"
        "OPEN='quote\nSTAGE=prod\nBACKUP_DIR=/srv/${STAGE}/${HOST_NAME}\nRETENTION\n"
    )
    settings = load_settings(tmp_path, {"HOST_NAME": "one"})
    assert settings.retention_days == 12
    assert settings.backup_dir == Path("/srv/prod/one")


def test_a_line_of_dotenv_that_is_ours_and_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('A=1\nENCRYPTION_KEY="s3cret\n')
    with pytest.raises(ConfigError, match=r"\.env, line 2: ENCRYPTION_KEY cannot be read") as caught:
        load_settings(tmp_path, {})
    assert "s3cret" not in str(caught.value)


def test_an_open_quote_in_dotenv_that_swallows_a_line_of_ours_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('OPEN="quote\nBACKUP_ENCRYPT="true"\n')
    with pytest.raises(ConfigError, match=r"\.env, line 1: BACKUP_ENCRYPT cannot be read"):
        load_settings(tmp_path, {})


def test_a_directory_called_dotenv_is_nothing_to_us(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert load_settings(tmp_path, {}).retention_days == 30


def test_a_dotenv_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=1\nB=\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"\.env, line 2: this is not UTF-8"):
        load_settings(tmp_path, {})


def test_no_secret_shows(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_text(
        '[database.other]\nurl = "sqlite:///hidden-a.db"\n[hooks]\nbefore = ["curl -H hidden-b"]\n'
        '[notify]\napprise = ["slack://hidden-f"]\n[drill]\ncommand = "predict --token hidden-g"\n'
    )
    environ = {
        "ENCRYPTION_KEY": "hidden-c",
        "DATABASE_URL": "postgresql://u:hidden-d@host/x?password=hidden-e",
        "SMTP_PASSWORD": "hidden-h",
        "BACKUP_PING_URL": "https://example.com/hidden-i",
    }
    settings = load_settings(tmp_path, environ)
    assert "hidden" not in f"{settings!r} {settings!s} {settings.databases!r} {settings.database_tables!r}"


def test_no_secret_is_logged_even_where_pydantic_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "true")
    caplog.set_level(logging.DEBUG)
    (tmp_path / "holdfast.toml").write_text('[database.other]\nurl = "sqlite:///hidden-a.db"\n')
    load_settings(tmp_path, {"ENCRYPTION_KEY": "hidden-b"})
    assert "hidden" not in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        '[database]\nurl = "sqlite:///hidden.db"\n',
        'database = "hidden"\n',
        '[database.a]\nurl = "hidden"\nenv = "HIDDEN"\n',
        '[hooks]\nbefore = ["curl \'hidden"]\n',
        'encryption_key = "hidden"\n',
        'database_url = ["hidden"]\n',
        'notify = "hidden"\n',
        '[notify]\napprise = ["hidden"]\n',
        '[notify]\napprise = "hidden slack://a"\n',
        '[notify]\nping_url = "ftp://hidden"\n',
        '[notify]\nping_url = "https://hidden:port/"\n',
        '[notify]\nsmtp_password = "hidden"\n',
        '[drill]\ncommand = "predict \'hidden"\n',
    ],
)
def test_no_error_shows_a_secret(tmp_path: Path, text: str) -> None:
    (tmp_path / "holdfast.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path, {})
    assert "hidden" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


def test_the_key_file_is_the_one_configured_or_the_one_that_is_there(tmp_path: Path) -> None:
    assert load_settings(tmp_path, {}).key_file is None
    (tmp_path / "holdfast.key").touch()
    assert load_settings(tmp_path, {}).key_file == tmp_path.resolve() / "holdfast.key"
    (tmp_path / "holdfast.toml").write_text('key_file = "keys/missing.key"\n')
    assert load_settings(tmp_path, {}).key_file == tmp_path.resolve() / "keys" / "missing.key"


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert load_settings(tmp_path, {"BACKUP_DIR": "~/backups"}).backup_dir == Path("/home/ada/backups")


@pytest.mark.parametrize(
    ("config", "database", "components"),
    [
        (BackupConfig(), True, ("database", "models", "config")),
        (BackupConfig(), False, ("models", "config")),
        (BackupConfig(include_models=False, include_logs=True), True, ("database", "config", "logs")),
        (BackupConfig(include_models=False, include_config=False), False, ()),
    ],
)
def test_a_backup_without_names_holds_the_database_and_what_is_included(
    tmp_path: Path, config: BackupConfig, database: bool, components: tuple[str, ...]
) -> None:
    environ = {"DATABASE_URL": "sqlite:///x.db"} if database else {}
    assert load_settings(tmp_path, environ, config).default_components() == components


@given(gigabytes=st.floats(min_value=1e-12, max_value=1e9))
def test_a_gigabyte_is_a_thousand_million_bytes_and_a_limit_is_never_nothing(gigabytes: float) -> None:
    limit = load_settings(Path(__file__).parent, {"BACKUP_MAX_SIZE_GB": repr(gigabytes)}).max_bytes
    assert limit >= 1
    assert abs(limit - gigabytes * 10**9) <= 1


def test_importing_the_settings_does_not_import_sqlalchemy() -> None:
    code = "import sys, holdfast.config; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
