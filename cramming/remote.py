"""Addresses of any storage fsspec knows (``s3://``, ``gs://``, ``hf://``, ``https://``), and what goes wrong there.

Credentials and endpoints come from where the storage's own tools look for them (for S3: the variables ``AWS_...``,
``AWS_ENDPOINT_URL`` among them, and ``~/.aws``). None of them is ever an option of this program, or printed.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cramming.durable import is_full
from cramming.errors import UserError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL = ("file", "local")
_PACKAGES = {"s3": "'.[s3]'", "s3a": "'.[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
# Where what a storage's libraries raise is defined. Anything else is a mistake of ours, and stays one.
_LIBRARIES = ("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google", "httpx", "huggingface_hub",
              "requests", "s3fs", "urllib3")  # fmt: skip
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired",
            "UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError")  # fmt: skip
_UNKNOWN_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "401")
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError", "CredentialRetrievalError")
_BUSY = ("SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalError",
         "TooManyRequests", "OperationAborted", "408", "429", "500", "502", "503", "504")  # fmt: skip
_CUT = ("ConnectionError", "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "HTTPClientError",
        "ConnectionClosedError", "ResponseStreamingError", "IncompleteReadError", "IncompleteRead",
        "ResponseParserError", "RequestTimeout", "ClientConnectionError", "ClientPayloadError", "FSTimeoutError",
        "TransportError")  # fmt: skip


def is_remote(address: str | Path) -> bool:
    """Whether an address means another storage than this machine's files."""
    found = _SCHEME.match(str(address))
    return found is not None and found[1].lower() not in _LOCAL


def local_path(address: str | Path) -> Path | None:
    """The file or folder of this machine that an address means; None: it is remote."""
    if is_remote(address):
        return None
    return Path(_SCHEME.sub("", str(address), count=1)).expanduser()


def shown(address: str | Path) -> str:
    """An address as it may be printed: without a password or a signature in it."""
    if not is_remote(address):
        return str(address)
    parts = urlsplit(str(address))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def join(address: str, *names: str) -> str:
    """A place below an address; a query behind it stays behind."""
    address, mark, query = address.partition("?")
    return "/".join([address.rstrip("/"), *names]) + mark + query


def filesystem(address: str | Path) -> tuple[Any, str]:
    """The fsspec filesystem of an address, and the path of the address in it.

    Nothing is asked of the storage yet. Listings are not remembered: others write there, too.

    Raises:
        UserError: fsspec knows no such storage, or its package is not installed.
    """
    import fsspec

    scheme = str(address).partition("://")[0].lower()
    try:
        options = {} if local_path(address) is not None else {"use_listings_cache": False}
        fs, path = fsspec.core.url_to_fs(str(address), **options)
    except ImportError as error:
        package = _PACKAGES.get(scheme, re.sub(r"\s+", " ", str(error)))
        raise UserError(f"{shown(address)} needs a package that is not here: pip install {package}") from error
    except ValueError as error:
        raise UserError(
            f"{shown(address)} is of no storage that is known ({_line(error)}); "
            "use s3://, gs://, hf://, https:// or a folder"
        ) from error
    return fs, path


@contextmanager
def explained(address: str | Path) -> Iterator[None]:
    """Turn what a storage raises inside the block into one line for a person; mistakes of ours and a full disk pass.

    Raises:
        UserError: a missing package, a wrong bucket, missing, expired or wrong credentials, no access, no connection.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _of_storage(error, address):
            raise
        raise UserError(f"{shown(address)} {_said(error, address)}") from error


def passes(error: BaseException) -> bool:
    """Whether the same request may succeed a little later: too many requests, a lost connection, a server's hiccup."""
    names = set(_names(error))
    if names & {*_EXPIRED, *_UNKNOWN_KEYS, *_NO_KEYS}:
        return False
    lost = any(isinstance(one, ConnectionError | TimeoutError) for one in _chain(error))
    return lost or bool(names & {*_BUSY, *_CUT})


def is_past_end(error: BaseException) -> bool:
    """Whether a part of a file was asked for that begins behind its end."""
    return bool(set(_names(error)) & {"InvalidRange", "416"})


def is_missing(error: BaseException) -> bool:
    """Whether a file is not there, in a bucket that is."""
    names = set(_names(error))
    return "FileNotFoundError" in names and not names & {"NoSuchBucket", *_CUT}


def _said(error: Exception, address: str | Path) -> str:
    """What is wrong with an address, and the way out."""
    names = set(_names(error))
    scheme = str(address).partition("://")[0].lower()
    keys = "the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE" if scheme in ("s3", "s3a") else (
        "the credentials as the storage's own tools read them")  # fmt: skip
    if any(isinstance(one, ImportError) for one in _chain(error)):
        return f"needs a package that is not here: pip install {_PACKAGES.get(scheme, _line(error))}"
    if names & set(_EXPIRED):
        return "refuses: the credentials have expired; renew them and run the same command again, nothing is lost"
    if passes(error) and not names & set(_BUSY):
        endpoint = ", AWS_ENDPOINT_URL" if scheme in ("s3", "s3a") else ""
        return f"cannot be reached ({_line(error)}); check the connection{endpoint} and run the same command again"
    if "400" in names and scheme in ("s3", "s3a"):  # the answer to HEAD has no room for a reason
        return (
            "refuses with 400, as it does when credentials have expired or the bucket is of another region; "
            "renew them, or set AWS_DEFAULT_REGION, and run the same command again"
        )
    if names & set(_NO_KEYS):
        return f"cannot be asked without credentials, and there are none; set {keys}"
    if names & set(_UNKNOWN_KEYS):
        return f"does not accept the credentials; check {keys}"
    if "NoSuchBucket" in names:
        return "is not there: the bucket does not exist; check its name, and AWS_ENDPOINT_URL if it is no bucket of AWS"
    if any(isinstance(one, PermissionError) for one in _chain(error)) or names & {"AccessDenied", "403"}:
        return f"refuses access; ask its owner for the right to it, or check {keys}"
    if "ParamValidationError" in names:
        return "cannot be a bucket's address; check its name"
    if any(isinstance(one, FileNotFoundError) for one in _chain(error)) and not names & set(_CUT):
        return "is not there; check the bucket and the path"
    if names & set(_BUSY):
        return f"is too busy to answer ({_line(error)}); run the same command again later, nothing is lost"
    return f"cannot be used ({_line(error)}); check the address"


def _of_storage(error: Exception, address: str | Path) -> bool:
    if isinstance(error, OSError):
        # An error of this machine's disk names a file of it; one of a storage has no number or no file.
        return not is_full(error) and (error.filename is None or not is_remote(address))
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return True
    return isinstance(error, ImportError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _names(error: BaseException) -> Iterator[str]:
    """What an error and its causes are called: their classes, and the codes a server gave."""
    for one in _chain(error):
        yield from (base.__name__ for base in type(one).__mro__)
        answer = getattr(one, "response", None)
        if isinstance(answer, dict):
            yield str(answer.get("Error", {}).get("Code"))
            yield str(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
        for status in (getattr(one, "status", None), getattr(one, "code", None)):
            if isinstance(status, int):
                yield str(status)


def _line(error: BaseException) -> str:
    """The first line of what an error says; what follows a question mark in an address may be a signature."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"\?\S*", "", text.splitlines()[0])[:200]
