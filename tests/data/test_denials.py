"""Which variable is missing is said for every kind of URL that has one, whatever its library raises for it.

The errors are what these libraries raised when they were asked without credentials, or with bad ones, of servers of this machine
(hdfs-native: as its source has them); their classes are made anew here, with the same names and attributes.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peerlm.data.denials import CREDENTIALS, variables
from peerlm.data.sources import PACKAGES, explained
from peerlm.errors import ConfigError


def raised(text: str, *classes: str, **attributes: Any) -> Exception:
    """Of a class with these bases, the nearest first."""
    made: type[Exception] = Exception
    for name in reversed(classes):
        made = type(name, (made,), {})
    error = made(text)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def azure(text: str, status: int | None, *classes: str) -> Exception:
    response = None if status is None else SimpleNamespace(status_code=status, reason="no")
    bases = (*classes, "HttpResponseError", "AzureError")
    return raised(text, *bases, status_code=status, response=response)


def answered(status: int) -> Exception:
    """`requests.HTTPError`, and what s3fs and huggingface_hub have like it."""
    return raised(
        f"{status} Client Error", "HTTPError", response=SimpleNamespace(status_code=status)
    )


HADOOP = "org.apache.hadoop.security"

DENIED = [
    ("s3", PermissionError("Access Denied"), "AWS_ACCESS_KEY_ID"),
    ("s3", raised("Unable to locate credentials", "NoCredentialsError", "BotoCoreError"), "AWS_"),
    ("s3", raised("need a key", "PartialCredentialsError", "BotoCoreError"), "AWS_SECRET_ACCESS"),
    ("hf", answered(401), "HF_TOKEN"),
    (
        "gs",
        raised("Anonymous caller has no storage.objects.get access, 401", "HttpError", code=401),
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    ("gs", raised("Invalid Credentials, 401", "HttpError", code=401), "GOOGLE_APPLICATION"),
    ("gcs", OSError("Forbidden: b/bucket/o/x\nsomebody does not have access"), "GOOGLE_APPLI"),
    ("gs", raised("not found", "DefaultCredentialsError", "GoogleAuthError"), "GOOGLE_APPLI"),
    ("gs", raised("invalid_grant", "RefreshError", "GoogleAuthError"), "GOOGLE_APPLICATION"),
    (
        "gs",
        raised("Got error while refreshing credentials.", "NonRetryableError"),
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    (
        "az",
        ValueError(
            "unable to connect to account for Must provide either a connection_string or account_name with credentials!!"
        ),
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
    (
        "abfs",
        ValueError("unable to connect to account for Connection string is either blank."),
        "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    ),
    (
        "az",
        azure("Invalid base64-encoded string", None, "AzureSigningError"),
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
    (
        "az",
        azure("Server failed to authenticate", 403, "ClientAuthenticationError"),
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
    (
        "az",
        azure("failed to retrieve a token", None, "ClientAuthenticationError"),
        "AZURE_STORAGE_CONNECTION_STRING",
    ),
    ("az", azure("invalid status 'Forbidden'\nErrorCode", 403), "AZURE_STORAGE_CONNECTION"),
    ("abfss", azure("PublicAccessNotPermitted", 401), "AZURE_STORAGE_CONNECTION_STRING"),
    (
        "hdfs",
        RuntimeError(f'RPCError("{HADOOP}.AccessControlException", "Permission denied: user=a")'),
        "HADOOP_USER_NAME, or a Kerberos ticket",
    ),
    (
        "hdfs",
        RuntimeError(f"RPC error: {HADOOP}.AccessControlException Permission denied: user=a"),
        "HADOOP_USER_NAME",
    ),
    (
        "hdfs",
        RuntimeError(f'FatalRPCError("{HADOOP}.authorize.AuthorizationException", "not allowed")'),
        "HADOOP_USER_NAME",
    ),
    ("hdfs", RuntimeError('SASLError("no Kerberos")'), "HADOOP_USER_NAME, or a Kerberos ticket"),
    ("viewfs", RuntimeError("GSSAPI error: GSS_S_FAILURE 0 No ticket"), "a Kerberos ticket"),
    ("hdfs", RuntimeError("NoSASLMechanism"), "a Kerberos ticket"),
    ("webhdfs", PermissionError("Permission denied: user=dr.who"), "webhdfs://USER@HOST"),
    ("webhdfs", answered(401), "webhdfs://USER@HOST:9870/PATH"),
]


@pytest.mark.parametrize(("kind", "error", "wanted"), DENIED)
def test_what_to_set_is_said_in_one_line(kind: str, error: Exception, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught, explained(f"{kind}://host/plays", "data add"):
        raise error
    line = str(caught.value)
    assert line.startswith(f"data add = '{kind}://host/plays': access denied: ")
    assert f"; set {CREDENTIALS[kind]}" in line
    assert wanted in line
    assert "\n" not in line


def test_every_kind_that_needs_credentials_is_shown() -> None:
    others = {"s3a", "adl"}  # other names of what is here
    assert {kind for kind, *_ in DENIED} == CREDENTIALS.keys() - others


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("s3", OSError("Connection reset by peer")),
        ("gs", raised("Backend Error, 503", "HttpError", code=503)),
        ("gs", raised("bad", "HttpError", code=None)),
        ("gs", OSError("cannot read bucket/Forbidden: the comedy")),
        ("az", azure("The server is busy", 503)),
        ("az", ValueError("no such block")),
        ("hdfs", RuntimeError('OperationFailed("no data node for /plays/authorization")')),
        ("hdfs", OSError("Connection refused (os error 111)")),
        ("webhdfs", RuntimeError("StandbyException")),
        ("file", PermissionError(13, "Permission denied")),
        ("https", answered(403)),
    ],
)
def test_what_no_variable_would_mend_names_none(kind: str, error: Exception) -> None:
    assert variables(error, kind) == ""
    with pytest.raises(ConfigError) as caught, explained(f"{kind}://host/plays", "data add"):
        raise error
    assert "cannot be read" in str(caught.value)
    assert "; set " not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "extra"), [("gs://b/x", "gcs"), ("gcs://b/x", "gcs"), ("abfs://c/x", "az")]
)
def test_a_package_that_is_missing_is_named_with_its_extra(url: str, extra: str) -> None:
    wanted = rf"pip install 'peerlm\[{extra}\]'"
    with pytest.raises(ConfigError, match=wanted), explained(url, "data add"):
        raise ImportError("Please install it")


def test_every_extra_that_is_named_exists() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(PACKAGES.values()) <= project["optional-dependencies"].keys()
