"""Secrets never leave the process; ordinary text always does."""

# ruff: noqa: E501, SIM905, ISC003 - tables read best with a row a line
from __future__ import annotations

import hashlib
import random
import string
import sysconfig
import uuid
from pathlib import Path

import pytest

from sdk import _secrets

_random = random.Random(5)


def _made(alphabet: str, length: int) -> str:
    """Made up at run time, so that no scanner of repositories trips over this file."""
    return "".join(_random.choice(alphabet) for _ in range(length))


ALNUM = string.ascii_letters + string.digits
TOKENS = {
    "AWS": "AK" + "IA" + _made("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16),
    "GitHub": "gh" + "p_" + _made(ALNUM, 36),
    "GitHub fine": "github" + "_pat_" + _made(ALNUM, 22) + "_" + _made(ALNUM, 59),
    "GitLab": "gl" + "pat-" + _made(ALNUM, 20),
    "Hugging Face": "h" + "f_" + _made(string.ascii_letters, 34),
    "OpenAI": "sk" + "-" + _made(ALNUM, 46) + "A1",
    "OpenAI project": "sk" + "-proj-" + _made(ALNUM, 60) + "A1",
    "Anthropic": "sk" + "-ant-api03-" + _made(ALNUM, 90),
    "Slack": "xo" + "xb-" + _made(string.digits, 12) + "-" + _made(ALNUM, 24),
    "Slack hook": "https://hooks." + "slack.com/services/T" + _made(ALNUM, 40),
    "Google": "AI" + "za" + _made(ALNUM, 35),
    "Stripe": "sk" + "_live_" + _made(ALNUM, 24),
    "JWT": "ey" + "J" + _made(ALNUM, 30) + ".ey" + "J" + _made(ALNUM, 40) + "." + _made(ALNUM, 43),
    "npm": "np" + "m_" + _made(ALNUM, 36),
    "W&B": "wandb" + "_v1_" + _made(ALNUM, 60),
    "private key": "-----BEGIN RSA PRIVATE"
    + " KEY-----\n"
    + _made(ALNUM, 64)
    + "\n"
    + _made(ALNUM, 64)
    + "\n-----END RSA PRIVATE"
    + " KEY-----",
}


@pytest.mark.parametrize("kind", TOKENS)
@pytest.mark.parametrize("frame", ["{}", "token is {} here", 'x = "{}"', "curl -H {} ;", "('{}',)", "{}\n"])
def test_a_token_of_known_shape_is_masked_anywhere(kind: str, frame: str) -> None:
    """A token whose issuer gave it a form is masked whatever stands around it."""
    masked = _secrets.mask_text(frame.format(TOKENS[kind]))
    assert TOKENS[kind][-20:] not in masked
    assert "${secret:" in masked
    assert masked.startswith(frame.split("{}")[0])


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("https://ann:pass-word-1@example.com/x", "pass-word-1"),
        ("postgres://u:pa$$w0rd1@db:5432/x".replace("$", "S"), "paSSw0rd1"),
        ("redis://:hunter22@host:6379", "hunter22"),
        ("Authorization: Bearer abcDEF123456xyz", "abcDEF123456xyz"),
        ('{"Authorization": "Basic dXNlcjpwYXNz"}', "dXNlcjpwYXNz"),
        ("--api-key k3yk3yk3y9", "k3yk3yk3y9"),
        ("--wandb-api-key=0123abcd4567ef89", "0123abcd4567ef89"),
        ("db_password='Tr0ub4dor&3'", "Tr0ub4dor&3"),
        ("MY_SECRET=aB3dE5gH7jK9mN1p", "aB3dE5gH7jK9mN1p"),
        ("AWS_SECRET_ACCESS_KEY=" + _made(ALNUM, 40), None),
    ],
)
def test_a_value_under_a_secret_name_is_masked_in_text(text: str, gone: str | None) -> None:
    """Assignments, flags, headers and addresses give up the value and keep the name."""
    masked = _secrets.mask_text(text)
    assert "${secret:" in masked
    assert (gone or text.partition("=")[2]) not in masked


@pytest.mark.parametrize(
    "name",
    "WANDB_API_KEY HF_TOKEN DB_PASSWORD password apiKey clientSecret AWS_SECRET_ACCESS_KEY GITHUB_TOKEN openai_key SENTRY_DSN auth_token HUGGING_FACE_HUB_TOKEN".split(),
)
def test_secret_names(name: str) -> None:
    """Names that promise a secret hide whatever stands under them, however harmless it looks."""
    masked, names = _secrets.mask_mapping({name: "swordfish", "lr": 0.1})
    assert masked == {name: "${secret:" + name + "}", "lr": 0.1}
    assert names == [name]


@pytest.mark.parametrize(
    "name",
    "lr pad_token eos_token max_tokens tokens_per_second monkey keys key_dim num_key_value_heads PYTHONHASHSEED tokenizer keyboard author TOKENIZERS_PARALLELISM sort_key use_auth secret_dim_len".split(),
)
def test_ordinary_names(name: str) -> None:
    """Words of this field are no secrets."""
    assert _secrets.mask_mapping({name: "<|endoftext|>"})[1] == []


def test_nested_values_are_masked_and_the_input_is_not_changed() -> None:
    """Masking goes to any depth and gives a copy."""
    config = {"model": {"layers": 2, "hub": {"token": "abc"}}, "urls": ["https://u:longpass1@h/x"], "n": None}
    masked, names = _secrets.mask_mapping(config)
    assert masked["model"]["hub"]["token"] == "${secret:token}"
    assert "longpass1" not in str(masked["urls"])
    assert names == ["model", "urls"]
    assert config["model"]["hub"]["token"] == "abc"


def test_a_value_once_seen_under_a_secret_name_is_masked_in_later_text() -> None:
    """A program that prints its own password prints a placeholder into the log."""
    _secrets.mask_mapping({"LAB_PASSWORD": "correct-horse-battery-9"})
    assert _secrets.mask_text("login with correct-horse-battery-9 failed") == "login with ${secret:LAB_PASSWORD} failed"


def test_a_command_line_is_masked() -> None:
    """`--token x`, `--token=x` and `key.token=x` lose their value; the rest stays."""
    masked = _secrets.mask_argv(
        ["train.py", "--hub-token", "abcdef", "--password=pw", "hub.token=zzz", "--lr", "0.1", "--max-tokens", "512"]
    )
    assert masked == [
        "train.py",
        "--hub-token",
        "${secret:hub-token}".replace("-", "_"),
        "--password=${secret:password}",
        "hub.token=${secret:hub_token}",
        "--lr",
        "0.1",
        "--max-tokens",
        "512",
    ]


def test_digests_ids_and_numbers_stay_readable() -> None:
    """What is random but no secret is never masked: digests, commits, uuids, hex dumps."""
    data = [hashlib.new(kind, b"x").hexdigest() for kind in ("md5", "sha1", "sha256", "blake2b")] + [
        "blake3:" + "0a1b" * 16,
        str(uuid.UUID(int=7)),
    ]
    lines = [f"digest = '{each}'" for each in data] + [
        f"sha256:{data[2]}",
        f"commit {data[1]}",
        "loss=0.123456789 step=10000",
        "tokens: 123456789",
        "next_token = 50256",
    ]
    lines += [
        "token = tokenizer.decode(ids)",
        "password = getpass.getpass()",
        "key=lambda x: x[0]",
        "secret santa list",
        "api_key = os.environ['API_KEY']",
        "token: str = ''",
    ]
    for line in lines:
        assert _secrets.mask_text(line) == line


def _sources() -> list[Path]:
    root = Path(__file__).parents[3]
    ours = [each for folder in ("sdk", "tracker", "runner", "docs") for each in (root / folder).rglob("*") if each.suffix in (".py", ".md")]
    return ours + sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def test_no_ordinary_source_file_is_taken_for_a_secret() -> None:
    """Of this repository and the standard library not one file would be left out of a snapshot."""
    files = _sources()
    assert len(files) > 150
    assert {str(each): why for each in files if (why := _secrets.secret_in_file(each.name, each.read_bytes()))} == {}


def test_ordinary_text_passes_unmasked() -> None:
    """Of the standard library's lines fewer than one in ten thousand is touched by masking."""
    lines = [
        line for each in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) for line in each.read_text("utf-8", "replace").splitlines()
    ]
    touched = [line for line in lines if _secrets.mask_text(line) != line]
    assert len(lines) > 50_000
    assert len(touched) < len(lines) / 10_000, touched[:20]


@pytest.mark.parametrize("name", [".env", ".netrc", "id_rsa", "a/.aws/credentials", "server.pem", "kaggle.json"])
def test_files_that_are_secrets_by_name(name: str) -> None:
    """Files whose name says what they hold are not read."""
    assert _secrets.secret_in_file(name, b"hello")


@pytest.mark.parametrize("name", [".env.example", "environment.yml", "tokens.txt", "vocab.json", "token_classification.py"])
def test_files_that_only_sound_like_it(name: str) -> None:
    """Ordinary files keep their place."""
    assert _secrets.secret_in_file(name, b'pad_token = "<pad>"\n') is None


def test_masking_is_quick_on_hostile_text() -> None:
    """No pattern runs away on long lines without an end."""
    for text in (
        "a" * 200_000,
        "password" * 20_000,
        "eyJ" * 50_000,
        "-----BEGIN PRIVATE" + " KEY-----\n" + "A" * 200_000,
        "://" * 50_000,
        "x:" * 50_000 + "@",
        "token=" * 30_000,
    ):
        assert isinstance(_secrets.mask_text(text), str)
