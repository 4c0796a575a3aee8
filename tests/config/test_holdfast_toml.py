from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.config import Settings, load_settings
from holdfast.errors import ConfigError


def load(root: Path, text: str, **environ: str) -> Settings:
    (root / "holdfast.toml").write_text(text)
    return load_settings(root, environ)


def refused(root: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(root, text)
    return caught.value


def test_every_key_does_something(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        tags = ["prod", "eu", "prod"]
        key_file = "my.key"
        database_timeout = 2.5
        [backup]
        directory = "/srv/backups"
        retention_days = 3
        compression_level = 0
        max_size_gb = 1
        encrypt = false
        include_models = false
        include_config = false
        include_logs = true
        schedule = "30 4 * * *"
        [database.main]
        url = "sqlite:///service.db"
        [database.other]
        env = "OTHER_URL"
        [models]
        paths = ["weights", "/data/models"]
        exclude = ["*.tmp", "cache/"]
        [config]
        paths = ["etc"]
        [logs]
        exclude = ["*.gz"]
        [hooks]
        before = ["systemctl stop 'my worker'", ["touch", "a b", ""]]
        after = ["systemctl start worker"]
        [notify]
        email = "ops@example.com"
        smtp_server = "mail.example.com"
        smtp_port = 465
        smtp_username = "robot"
        apprise = ["tgram://bot/chat", "json://localhost"]
        ping_url = "http://localhost:8000/ping"
        alarm_hours = 30
        [metrics]
        port = 9105
        address = "::1"
        textfile = "/var/lib/node_exporter/holdfast.prom"
        [retention]
        last = 3
        hourly = 24
        daily = 7
        weekly = 0
        monthly = 12
        yearly = 2
        [log]
        format = "json"
        [drill]
        command = "./predict --golden 'a b'"
        """,
        OTHER_URL="sqlite:///other.db",
    )
    root = tmp_path.resolve()
    assert settings.config_file == root / "holdfast.toml"
    assert settings.tags == ("prod", "eu")
    assert settings.key_file == root / "my.key"
    assert settings.database_timeout == 2.5
    assert settings.backup_dir == Path("/srv/backups")
    assert (settings.retention_days, settings.compression_level, settings.max_bytes) == (3, 0, 10**9)
    assert not settings.encrypt
    assert (settings.include_models, settings.include_config, settings.include_logs) == (False, False, True)
    assert settings.schedule == "30 4 * * *"
    assert [(spec.name, spec.sqlite_path(root).name) for spec in settings.databases] == [
        ("main", "service.db"),
        ("other", "other.db"),
    ]
    models, config, logs = settings.files
    assert models.paths == (root / "weights", Path("/data/models"))
    assert models.exclude == ("*.tmp", "cache/")
    assert config.paths == (root / "etc",)
    assert (logs.paths, logs.exclude) == ((), ("*.gz",))
    assert settings.hooks_before == (("systemctl", "stop", "my worker"), ("touch", "a b", ""))
    assert settings.hooks_after == (("systemctl", "start", "worker"),)
    assert settings.notification_email == "ops@example.com"
    assert (settings.smtp_server, settings.smtp_port) == ("mail.example.com", 465)
    assert settings.smtp_username == "robot"
    assert [url.get_secret_value() for url in settings.apprise_urls] == [
        "tgram://bot/chat",
        "json://localhost",
    ]
    assert settings.ping_url is not None
    assert settings.ping_url.get_secret_value() == "http://localhost:8000/ping"
    assert settings.alarm_hours == 30
    assert (settings.metrics_port, settings.metrics_address) == (9105, "::1")
    assert settings.metrics_textfile == Path("/var/lib/node_exporter/holdfast.prom")
    assert settings.keep == {"last": 3, "hourly": 24, "daily": 7, "monthly": 12, "yearly": 2}
    assert settings.log_format == "json"
    assert settings.drill_command == ("./predict", "--golden", "a b")


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("[backup]\nretention_day = 3", "backup.retention_day", "Did you mean retention_days?"),
        ("[backup]\nencrypt_backups = true", "backup.encrypt_backups", "Did you mean encrypt?"),
        ("retention_days = 3", "retention_days", "Did you mean retention_days in [backup]?"),
        ("[backups]\nencrypt = true", "backups", "Did you mean backup?"),
        ("[models]\nurl = 'x'", "models.url", "Did you mean url in [database.main]?"),
        ("[database.main]\nuri = 'x'", "database.main.uri", "Did you mean url?"),
        ("[backup]\ntag = []", "backup.tag", "Did you mean tags, before the first table?"),
        ("[hooks]\nbefor = []", "hooks.befor", "Did you mean before?"),
        ("encryption_key = 'x'", "encryption_key", "Did you mean the variable ENCRYPTION_KEY?"),
        ("[notify]\nsmtp_password = 'x'", "notify.smtp_password", "Did you mean the variable SMTP_PASSWORD?"),
        ("[notify]\nping = 'x'", "notify.ping", "Did you mean ping_url?"),
        ("[metrics]\nprot = 1", "metrics.prot", "Did you mean port?"),
        ("[retention]\ndayly = 1", "retention.dayly", "Did you mean daily?"),
        ("[log]\nformt = 'json'", "log.formt", "Did you mean format?"),
        ("[drill]\ncomand = 'x'", "drill.comand", "Did you mean command?"),
        ("[models]\nzzz = 1", "models.zzz", "Known here: paths, exclude."),
        ("Backup = {}", "Backup", "Did you mean backup?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_file_and_the_nearest_key(
    tmp_path: Path, text: str, key: str, hint: str
) -> None:
    error = refused(tmp_path, text)
    assert str(error) == f"{key} in {tmp_path.resolve() / 'holdfast.toml'} is not a setting"
    assert error.hint == hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[backup]\ncompression_level = 12", "backup.compression_level in"),
        ("[backup]\ncompression_level = true", "is True: it must be a whole number from 0 to 9"),
        ("[backup]\nmax_size_gb = -1", "is -1: it must be a number of GB above 0"),
        ("[backup]\ndirectory = ''", "is empty: it must be a path"),
        ('[backup]\ndirectory = "a\\u0000b"', "it must be a path"),
        ("[backup]\nencrypt = 'maybe'", "is 'maybe': it must be true or false"),
        ("[backup]\ntrust_writers = ['SHA256:89ab']", "it must be fingerprints"),
        (f"[backup]\ntrust_writers = ['SHA256:{'89ab-' * 7}89ab']", "it must be fingerprints"),
        ("[backup]\ntrust_writers = ['c2hvcnQ=']", "it must be fingerprints"),
        ("[backup]\ntrust_writers = ['é']", "it must be fingerprints"),
        ("[backup]\ntrust_writers = [7]", "it must be fingerprints"),
        ("[backup]\nschedule = 'often'", "the five fields of a cron line"),
        ("backup = 5", "is 5: it must be a table"),
        ("database_timeout = -1", "from 0 to 86400"),
        ("tags = 'prod'", "is 'prod': it must be a list"),
        ("tags = ['two words']", "tags[0] in"),
        ("key_file = ' '", "it must be a path"),
        ("[models]\npaths = 'models'", "it must be a list"),
        ("[models]\npaths = ['a', 3]", "models.paths[1] in"),
        ("[logs]\nexclude = ['']", "it must be a pattern"),
        ("[hooks]\nbefore = 'command'", "it must be a list"),
        ("[hooks]\nbefore = ['unclosed \"quote']", "it must be a command with its arguments"),
        ("[hooks]\nafter = ['']", "it must be a command with its arguments"),
        ("[hooks]\nafter = [[]]", "it must be a command with its arguments"),
        ("[hooks]\nafter = [['a', 1]]", "it must be a command with its arguments"),
        ("[database]\nurl = 'sqlite:///x'", "it must be a table"),
        ("[database.main]", "it must have a url"),
        ("[database.main]\nurl = 'x'\nenv = 'Y'", "not both"),
        ("[database.main]\nenv = 'not a name'", "it must be the name of a variable"),
        ("[database.main]\nurl = 5", "it must be a string"),
        ("[notify]\nemail = 'a@b\\nBcc: c@d'", "it must be one e-mail address"),
        ('[notify]\nemail = "a@b\\u0000"', "it must be one e-mail address"),
        ("[notify]\napprise = ['slack']", "it must be Apprise URLs"),
        ("[notify]\nping_url = 'example.com'", "it must be a URL that begins with http"),
        ("[notify]\nsmtp_port = true", "it must be a port"),
        ("[retention]\ndaily = -1", "a whole number of backups"),
        ("[drill]\ncommand = []", "it must be a command with its arguments"),
        ("[database.'Main DB']\nurl = 'x'", "lower-case letters"),
    ],
)
def test_a_wrong_value_is_refused_with_key_and_file(tmp_path: Path, text: str, said: str) -> None:
    message = str(refused(tmp_path, text))
    assert said in message
    assert f"in {tmp_path.resolve() / 'holdfast.toml'} is " in message


def test_a_database_written_without_a_name_is_told_how(tmp_path: Path) -> None:
    assert "[database.main]" in refused(tmp_path, "[database]\nurl = 'sqlite:///x'").hint


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = 1\nb = \n", 2), ("[backup\n", 1), ("\n\nx = '''\n\n", 4), ("tags = []\ntags = []", 2)],
)
def test_a_syntax_error_names_file_and_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path.resolve() / "holdfast.toml"
    assert str(refused(tmp_path, text)).startswith(f"{path}, line {line}: this is not TOML")


def test_a_file_that_cannot_be_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_bytes(b"tags = ['\xff']")
    with pytest.raises(ConfigError, match=r"holdfast.toml, line 1: this is not UTF-8"):
        load_settings(tmp_path, {})
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match=r"holdfast.toml is longer than"):
        load_settings(tmp_path, {})
    assert "this is not TOML" in str(refused(tmp_path, f"tags = {'[' * 100_000}"))
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"holdfast.toml cannot be read"):
        load_settings(tmp_path, {})


def test_holdfast_config_names_another_file_and_it_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_text("tags = ['usual']")
    (tmp_path / "other.toml").write_text("tags = ['other']")
    settings = load_settings(tmp_path, {"HOLDFAST_CONFIG": "other.toml"})
    assert settings.tags == ("other",)
    assert settings.config_file == tmp_path.resolve() / "other.toml"
    (tmp_path / ".env").write_text("HOLDFAST_CONFIG=other.toml")
    assert load_settings(tmp_path, {}).tags == ("other",)
    with pytest.raises(ConfigError, match=r"HOLDFAST_CONFIG names .*gone.toml, which is not there"):
        load_settings(tmp_path, {"HOLDFAST_CONFIG": "gone.toml"})
