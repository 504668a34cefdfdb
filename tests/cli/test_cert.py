"""``gwt cert``: files that a server can use, and the hash that a browser wants."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography import x509

from gwt import certificates, cli


def _said(capsys) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())


def test_certificate_is_written_and_its_paths_and_hash_are_printed(capsys, tmp_path):
    assert cli.main(["cert", "--out", str(tmp_path / "new")]) == 0
    said = _said(capsys)
    assert sorted(said) == ["certificate", "key", "sha-256"]
    loaded = certificates.load(said["certificate"], said["key"])
    assert loaded.sha256 == said["sha-256"]
    assert stat.S_IMODE(Path(said["key"]).stat().st_mode) == 0o600


def test_hosts_and_days_are_those_asked_for(capsys, tmp_path):
    argv = ["cert", "--out", str(tmp_path), "--days", "2", "example.test", "10.0.0.1"]
    assert cli.main(argv) == 0
    made = certificates.load(_said(capsys)["certificate"], tmp_path / "key.pem").certificate
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["example.test", "10.0.0.1"]
    assert (made.not_valid_after_utc - made.not_valid_before_utc).days == 2


def test_folder_that_cannot_be_made_is_one_line_and_exit_code_1(capsys, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "folder"
    assert cli.main(["cert", "--out", str(folder)]) == 1
    assert capsys.readouterr().err == f"gwt cert: {folder}: Not a directory\n"


def test_a_file_that_cannot_be_written_is_named(capsys, tmp_path):
    (tmp_path / "cert.pem").mkdir()
    assert cli.main(["cert", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"gwt cert: {tmp_path / 'cert.pem'}: Is a directory\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cert.pem", "key.pem"]
