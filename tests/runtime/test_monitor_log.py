"""A log file of Podman's monitor: every line is told once and whole, whenever one looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.backends.monitor_log import MonitorLog

if TYPE_CHECKING:
    from pathlib import Path

AT = b"2026-11-21T17:34:03.268633644+00:00"


def entry(text: bytes, *, stream: bytes = b"stdout", flag: bytes = b"F") -> bytes:
    """One entry as the monitor writes it."""
    return b" ".join((AT, stream, flag, text)) + b"\n"


def test_lines_are_whole_whatever_a_look_sees(tmp_path: Path) -> None:
    """Not before their entry is, nor before the last of their parts is; streams do not mix."""
    path = tmp_path / "ctr.log"
    content = b"".join(
        (
            entry(b"one"),
            entry(b"tw", flag=b"P"),
            entry(b"a warning  with spaces", stream=b"stderr"),
            entry(b"o"),
            entry(b""),
            entry(b"end", flag=b"P"),
        )
    )
    wanted = [b"one\n", b"a warning  with spaces\n", b"two\n", b"\n"]
    path.write_bytes(content)
    with MonitorLog(path) as log:
        assert list(log.news()) == wanted
        assert list(log.news()) == []
        assert list(log.last()) == [b"end"]
    path.write_bytes(b"")
    seen: list[bytes] = []
    with MonitorLog(path) as log, path.open("ab", buffering=0) as file:
        for number in range(len(content)):
            file.write(content[number : number + 1])
            seen += log.news()
    assert seen == wanted


def test_a_full_file_is_read_to_its_end(tmp_path: Path) -> None:
    """What was written last before the file was replaced is told before what the new one has."""
    path = tmp_path / "ctr.log"
    with MonitorLog(path) as log:
        assert list(log.news()) == [], "it is not there yet"
        path.write_bytes(entry(b"1"))
        assert list(log.news()) == [b"1\n"]
        with path.open("ab") as file:
            file.write(entry(b"2") + entry(b"3 and", flag=b"P"))
        (tmp_path / "ctr.log.tmp").write_bytes(entry(b" more") + entry(b"4"))
        (tmp_path / "ctr.log.tmp").rename(path)
        assert list(log.news()) == [b"2\n", b"3 and more\n", b"4\n"]
        path.unlink()
        assert list(log.news()) == []
