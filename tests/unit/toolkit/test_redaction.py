import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagemaker_mxnet_toolkit.redaction import (
    MASK,
    is_secret,
    redact_assignments,
    redact_mapping,
    redact_text,
    secrets_in,
)
from sagemaker_mxnet_training.config.configuration import resolve
from sagemaker_mxnet_training.config.job import describe, secrets_of
from tests.support.fakes import checked


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "PASSWORD",
        "db_password",
        "dbPassword",
        "PGPASSWORD",
        "db-passwd",
        "db_pwd",
        "SMTP_PASS",
        "passphrase",
        "secret",
        "client_secret",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "CODEARTIFACT_AUTH_TOKEN",
        "SM_HP_API_KEY",
        "apikey",
        "APIKey",
        "api_keys",
        "key",
        "key1",
        "token",
        "authtoken",
        "HF_TOKEN",
        "auth",
        "basic-auth",
        "oauth2",
        "Authorization",
        "credential",
        "credentials",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "private",
        "privateKey",
        "X-Amz-Signature",
        "X-Amz-Security-Token",
        "SAGEMAKER_MXNET_JOB_KEY",
    ],
)
def test_names_that_mean_a_secret(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "monkey",
        "keyboard",
        "keypoints",
        "turkey",
        "tokenizer",
        "tokenize",
        "num_tokens",
        "max_tokens",
        "MaxTokens",
        "pad_token_id",
        "vocab_keys",
        "author",
        "authority",
        "compass",
        "passenger",
        "bypass",
        "PWD",
        "OLDPWD",
        "epochs",
        "learning_rate",
        "SM_HOSTS",
        "LS_COLORS",
        "CA_REPOSITORY_ARN",
    ],
)
def test_names_that_do_not_mean_a_secret(name):
    assert not is_secret(name)


def test_a_mapping_is_masked_at_any_depth_and_left_as_it_was():
    value = {
        "lr": 0.1,
        "password": "p",
        "empty_token": "",
        "none_token": None,
        "nested": [{"api_key": 5}, "https://me:pass@host/x"],
        "credentials": {"user": "me"},
    }
    before = json.dumps(value)
    assert redact_mapping(value) == {
        "lr": 0.1,
        "password": MASK,
        "empty_token": "",
        "none_token": None,
        "nested": [{"api_key": MASK}, f"https://{MASK}@host/x"],
        "credentials": MASK,
    }
    assert json.dumps(value) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://me:pw@host/simple", "see https://***@host/simple"),
        ("git+https://token@github.com/a/b", "git+https://***@github.com/a/b"),
        ("https://me:p@ss:w@host/x", "https://***@host/x"),
        ("two http://a:b@h/ and http://c:d@h/", "two http://***@h/ and http://***@h/"),
        ("s3://bucket/key@1", "s3://bucket/key@1"),
        ("mail me@host", "mail me@host"),
        ("https://h/x?X-Amz-Signature=abc&v=1", "https://h/x?X-Amz-Signature=***&v=1"),
        ("https://h/x?v=1&token=abc", "https://h/x?v=1&token=***"),
        ("got eyJ2ZXIiOjEsImlzdSI6MTY3ODk.abc-_x.y here", "got *** here"),
        ("ValueError: invalid token: 'x'", "ValueError: invalid token: 'x'"),
    ],
)
def test_what_looks_like_a_secret_is_masked_without_knowing_it(text, expected):
    assert redact_text(text) == expected


def test_a_codeartifact_url_shows_no_token():
    token = "eyJ2ZXIiOjEsImlzdSI6MTY3ODk." + "Ab_-9" * 40
    url = (
        f"https://aws:{token}@d-123456789012.d.codeartifact.eu-west-1.amazonaws.com/pypi/r/simple/"
    )
    shown = redact_text(f"Looking in indexes: {url}")
    assert "Ab_-9" not in shown
    assert "codeartifact.eu-west-1.amazonaws.com" in shown


# Without the mask's own sign, what is left of a spelling cannot be mistaken for a mask.
TEXT = st.text(st.characters(exclude_characters="*"))


@given(st.text(st.characters(exclude_characters="*"), min_size=4), TEXT, TEXT)
def test_a_secret_is_masked_however_it_is_spelled(secret, before, after):
    for spelling in (
        secret,
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        quote(secret.encode("utf-8", "replace"), safe=""),
    ):
        shown = redact_text(f"{before}{spelling}{after}", [secret])
        assert MASK in shown
        assert spelling not in shown


def test_the_longer_of_two_secrets_is_masked_whole():
    assert redact_text("abcdefgh abcd", ["abcd", "abcdefgh"]) == "*** ***"


def test_values_that_occur_everywhere_are_not_masked():
    assert redact_text("abc is abc", ["abc", ""]) == "abc is abc"
    assert secrets_in({"token": True, "key": "None", "auth": "abc"}) == frozenset()


def test_a_private_key_is_masked_line_by_line():
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBg\n-----END KEY-----"
    assert redact_text("| MIIEvQIBADANBg\n", [key]) == "| ***\n"


def test_secrets_are_found_at_any_depth():
    found = secrets_in(
        {
            "password": "first-one",
            "a": [{"token": 123456, "b": {"x": "no secret"}}],
            "credentials": {"user": "second-one"},
            "url": "https://me:third-one@host",
            "index": "https://fourth-one@host",
        }
    )
    assert found == {"first-one", "123456", "second-one", "third-one", "fourth-one"}


def test_assignments_are_masked_by_name():
    text = 'TOKEN=abc {"password": "x y"} lr=0.1 api_key: \'z\''
    assert redact_assignments(text) == 'TOKEN=*** {"password": "*** y"} lr=0.1 api_key: \'***\''


@pytest.fixture
def job(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").touch()
    resolution = resolve(
        {
            "SAGEMAKER_BASE_DIR": str(tmp_path),
            "SM_USER_ENTRY_POINT": "train.py",
            "SM_HOSTS": '["algo-1", "algo-2"]',
            "SM_CURRENT_HOST": "algo-1",
            "SM_HPS": json.dumps(
                {
                    "epochs": 5,
                    "db_password": "hunter-2222",
                    "nested": {"api_key": "hunter-3333"},
                    "echo": "it is hunter-2222",
                }
            ),
            "SM_FRAMEWORK_PARAMS": json.dumps({"sagemaker_own_token": "hunter-4444"}),
            "SM_CHANNEL_TRAIN": "/data/train",
            "PIP_INDEX_URL": "https://me:hunter-5555@host/simple",
            "AWS_SECRET_ACCESS_KEY": "hunter-6666",
            "SAGEMAKER_MXNET_JOB_KEY": "hunter-7777",
            "SAGEMAKER_MXNET_PEER_TIMEOUT": "3",
        }
    )
    return checked(resolution)


def test_all_secrets_of_a_job(job):
    assert secrets_of(job) == {f"hunter-{n}" for n in (2222, 3333, 4444, 5555, 6666, 7777)}


def test_the_description_shows_the_job_and_no_secret(job):
    text = describe(job)
    assert "hunter" not in text
    for part in (
        "algo-1 (of 2: algo-1, algo-2, leader)",
        f"train.py from {job.code_dir}",
        "epochs = 5",
        'db_password = "***"',
        'nested = {"api_key": "***"}',
        'train = "/data/train"',
        "peer_timeout = 3.0",
        "distribution: parameter server off",
    ):
        assert part in text
    assert "hunter" not in repr(job.settings)
