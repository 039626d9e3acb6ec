"""The checks of ``encore up`` that need no start."""

from collections import namedtuple
from pathlib import Path

import pytest

from tracker import supervisor, up

Partition = namedtuple("Partition", "mountpoint fstype")


@pytest.mark.parametrize(("path", "kind"), [("/data/a/b", "nfs4"), ("/data", "nfs4"), ("/database", "ext4"), ("/", "ext4")])
def test_the_longest_mount_point_above_a_path_decides(path, kind):
    assert up.filesystem_of(Path(path), lambda: [Partition("/", "ext4"), Partition("/data", "nfs4")]) == kind


def test_a_deep_folder_gets_a_socket_path_that_fits(tmp_path):
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    path = up._socket_path(deep)
    assert len(bytes(path)) <= 107
    assert path == up._socket_path(deep)
    path.parent.rmdir()


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_an_impossible_port_is_refused_in_words(port):
    with pytest.raises(up.CannotStart, match=str(port)):
        up._choose_port("127.0.0.1", port)


def test_a_large_log_is_turned_and_old_ones_go(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "ROTATE_BYTES", 10)
    log = tmp_path / "web.log"
    for number in range(6):
        log.write_text(f"{number}" * 20)
        supervisor.rotate(log)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["web.log.1", "web.log.2", "web.log.3"]
    assert (tmp_path / "web.log.1").read_text() == "5" * 20
