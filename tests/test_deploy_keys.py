"""A site's key: private to its owner, and of the kind that Flower registers."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import bytes_to_public_key

from layerweld.deploy.keys import fingerprint, make_key, public_file, read_public_key
from layerweld.errors import DeployError


def test_the_private_key_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib; os.umask(0); from layerweld.deploy.keys import make_key; "
        "make_key(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "ash")], check=True)
    assert stat.S_IMODE((tmp_path / "ash").stat().st_mode) == 0o600
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["ash", "ash.pub"]


def test_flower_reads_the_public_key(tmp_path: Path) -> None:
    said = make_key(tmp_path / "ash")
    public = read_public_key(public_file(tmp_path / "ash"))
    assert bytes_to_public_key(try_load_public_key(tmp_path / "ash.pub")).curve.name == "secp384r1"
    assert said == fingerprint(public)


def test_the_fingerprint_is_the_one_that_ssh_keygen_prints() -> None:
    public = (
        b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl github"
    )
    assert fingerprint(public) == "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU"


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path: Path) -> None:
    make_key(tmp_path / "ash")
    with pytest.raises(DeployError, match=r"private key.*\.pub"):
        read_public_key(tmp_path / "ash")


@pytest.mark.parametrize("content", [b"", b"hello", b"ssh-rsa AAAA", b"\xff\xfe"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pub").write_bytes(content)
    with pytest.raises(DeployError, match="not an SSH public key"):
        read_public_key(tmp_path / "x.pub")


def test_another_curve_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pub").write_text(
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl x"
    )
    with pytest.raises(DeployError, match="ssh-keygen -t ecdsa -b 384"):
        read_public_key(tmp_path / "x.pub")
