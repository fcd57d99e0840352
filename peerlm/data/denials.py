"""Whether what a file system raised means that it lacks credentials, and which variable these would be in.

There is one way of being refused for each library. As seen with s3fs 2026.9, gcsfs 2026.10, adlfs 2026.8 (azure-core 1.41),
huggingface_hub 2.4, hdfs-native 0.14 and fsspec's webhdfs: most have the status of an answer somewhere, some a class of their own for it,
gcsfs turns a 403 into an `OSError` of words, adlfs what it lacks into a `ValueError`, and hdfs-native everything into a
`RuntimeError` that names the class of Hadoop's. Words are looked for only where a library has nothing else, and only for
its kind of URL, since a path may have any words in it.
"""

from __future__ import annotations

import re

AZURE = ("az", "abfs", "abfss", "adl")
GOOGLE = ("gs", "gcs")
HADOOP = ("hdfs", "viewfs")

CREDENTIALS = {
    **dict.fromkeys(
        ("s3", "s3a"),
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL, unless it is Amazon's)",
    ),
    **dict.fromkeys(GOOGLE, "GOOGLE_APPLICATION_CREDENTIALS"),
    **dict.fromkeys(
        AZURE,
        "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    ),
    "hf": "HF_TOKEN",
    **dict.fromkeys(HADOOP, "HADOOP_USER_NAME, or a Kerberos ticket"),
    "webhdfs": "the user in the URL (webhdfs://USER@HOST:9870/PATH)",
}
"""Kind of URL → where its library looks for a name and a secret."""

CLASSES = re.compile(r"Credential|ClientAuthentication|GoogleAuth|RefreshError|Signing")
"""In the name of an error's class, or of one that it is derived from."""

WORDS = {
    **dict.fromkeys(GOOGLE, re.compile(r"Forbidden: |.*refreshing credentials")),
    **dict.fromkeys(AZURE, re.compile(r"unable to connect to account for ")),
    **dict.fromkeys(
        HADOOP,
        re.compile(
            r".*\b(AccessControlException|AuthorizationException|SaslException|SecretManager\$InvalidToken)\b"
            r"|.*\b(GSSAPI ?[Ee]rror|SASL ?[Ee]rror|NoSASLMechanism|No valid SASL mechanism)"
        ),
    ),
}
"""Kind of URL → what the text of an error is like, from its beginning."""

REFUSED = (401, 403)


def variables(error: Exception, kind: str) -> str:
    """What to set, in words, if this is a refusal for want of credentials; else empty."""
    return CREDENTIALS.get(kind, "") if _is_denied(error, kind) else ""


def _is_denied(error: Exception, kind: str) -> bool:
    if isinstance(error, PermissionError) or _status(error) in REFUSED:
        return True
    if any(CLASSES.search(known.__name__) for known in type(error).__mro__):
        return True
    words = WORDS.get(kind)
    return words is not None and words.match(str(error)) is not None


def _status(error: object) -> int:
    """Of the answer of a server, where the error has it as libraries have it; 0: it has none."""
    response = getattr(error, "response", None)
    named = [getattr(response, "status_code", None)]
    named += [getattr(error, name, None) for name in ("status_code", "status", "code")]
    return next((status for status in named if isinstance(status, int) and status), 0)
