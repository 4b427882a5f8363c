"""Addresses of other storages, and that what goes wrong there is one line that names the address and the way out."""

import sys
from pathlib import Path

import pytest
import s3_server

from cramming import remote
from cramming.errors import UserError


def read(address: str) -> None:
    with remote.explained(address):
        fs, path = remote.filesystem(address)
        fs.cat_file(path, start=0, end=3)


def said(address: str) -> str:
    """What reading an address says."""
    with pytest.raises(UserError) as caught:
        read(address)
    text = str(caught.value)
    assert "\n" not in text
    assert "not-a-secret" not in text
    return text


def test_what_is_remote(tmp_path: Path) -> None:
    assert [remote.is_remote(one) for one in ("s3://b/x", "hf://datasets/a/b", "https://h/x")] == [True] * 3
    assert [remote.is_remote(one) for one in ("/x", "x/y", tmp_path, "file:///x", "C:/x")] == [False] * 5
    assert remote.local_path("file:///a/b") == Path("/a/b")
    assert remote.local_path("~/b") == Path.home() / "b"
    assert remote.local_path("s3://b/x") is None
    assert remote.join("s3://b/x/", "train", "index.json") == "s3://b/x/train/index.json"
    assert remote.join("https://h/x?sig=1", "index.json") == "https://h/x/index.json?sig=1"


def test_secrets_in_addresses_are_not_shown() -> None:
    assert remote.shown("https://user:secret@host:8/x?X-Amz-Signature=abc#y") == "https://host:8/x"
    assert remote.shown("s3://b/x") == "s3://b/x"
    assert remote.shown("my/folder?") == "my/folder?"


def test_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"here")
    fs, path = remote.filesystem(tmp_path / "x")
    assert fs.cat_file(path) == b"here"
    assert "is not there" in said(f"file://{tmp_path}/y")


def test_unknown_storages_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "foo://x is of no storage that is known" in said("foo://x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert said("gs://bucket/x").endswith("gs://bucket/x needs a package that is not here: pip install gcsfs")


def test_mistakes_of_ours_and_a_full_disk_pass() -> None:
    with pytest.raises(KeyError), remote.explained("s3://b/x"):
        raise KeyError("ours")
    with pytest.raises(OSError, match="No space"), remote.explained("s3://b/x"):
        raise OSError(28, "No space left on device")
    with pytest.raises(PermissionError), remote.explained("s3://b/x"):
        open("/proc/1/mem", "rb").close()


def test_a_bucket(s3: s3_server.S3) -> None:
    s3.put("bucket/x", b"there")
    fs, path = remote.filesystem("s3://bucket/x")
    assert fs.cat_file(path, start=1, end=3) == b"he"
    assert said("s3://bucket/y") == "s3://bucket/y is not there; check the bucket and the path"
    assert "the bucket does not exist" in said("s3://bukket/x")
    assert "cannot be a bucket's address" in said("s3://Bad_Bucket!/x")
    for how, words in (
        (s3_server.EXPIRED, "the credentials have expired; renew them"),
        (s3_server.DENIED, "refuses access"),
        ((403, "InvalidAccessKeyId", "The key testing does not exist."), "does not accept the credentials"),
    ):
        s3.refuse("bucket", times=100, how=how)
        assert words in said("s3://bucket/x")
        s3.mend()
    s3.refuse("bucket", times=100, how=s3_server.EXPIRED)
    with pytest.raises(UserError, match="400, as it does when credentials have expired"), remote.explained("s3://b/x"):
        remote.filesystem("s3://bucket/x")[0].info("bucket/x")  # HEAD: S3 gives no reason


def test_no_credentials(s3: s3_server.S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert "without credentials, and there are none" in said("s3://bucket/x")


def test_what_passes(s3: s3_server.S3) -> None:
    """Whether the same request may do better later."""
    s3.put("bucket/x", b"there")

    def fails(how: tuple[int, str, str]) -> BaseException:
        s3.refuse("bucket", times=100, how=how)
        fs, path = remote.filesystem("s3://bucket/x")
        with pytest.raises(OSError, match=r".") as caught:
            fs.cat_file(path, start=0, end=3)
        s3.mend()
        return caught.value

    assert not remote.passes(fails(s3_server.EXPIRED))
    assert not remote.passes(fails(s3_server.DENIED))
    assert not remote.passes(fails((404, "NoSuchKey", "none")))
    assert remote.is_missing(fails((404, "NoSuchKey", "none")))
    assert not remote.is_missing(fails((404, "NoSuchBucket", "none")))
    assert remote.is_past_end(fails((416, "InvalidRange", "behind the end")))
    assert remote.passes(ConnectionResetError("cut"))
    assert not remote.passes(ValueError("ours"))
