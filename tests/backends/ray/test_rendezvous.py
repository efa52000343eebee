"""The port where ranks meet is nobody else's, from when it is told to when they come."""

import socket
from datetime import timedelta

import pytest

from rlinf_graph.backends.ray import rendezvous
from rlinf_graph.backends.ray.rendezvous import join, listen, spare_port

HOST, LIMIT = "127.0.0.1", timedelta(seconds=20)


def test_rank_0_holds_the_port_that_it_tells():
    store, address = listen(HOST, 2, LIMIT)
    port = int(address.removeprefix(f"{HOST}:"))
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("", port))
    store.set("weights", "3")
    assert join(address, 2, LIMIT).get("weights") == b"3"


def test_a_spare_port_is_none_that_a_connection_may_take(monkeypatch, tmp_path):
    told = tmp_path / "range"
    told.write_text("30000\t60999\n")
    monkeypatch.setattr(rendezvous, "EPHEMERAL", told)
    assert all(20_000 <= port < 30_000 for port in (spare_port() for _ in range(50)))


@pytest.mark.parametrize("free", [False, True])
def test_without_room_below_the_range_the_system_gives_a_port(free, monkeypatch, tmp_path):
    told = tmp_path / "range"
    told.write_text("1024\t65535\n" if free else "20001\t60999\n")
    monkeypatch.setattr(rendezvous, "EPHEMERAL", told)
    with socket.socket() as other:
        if not free:
            other.bind((HOST, 20_000))
        port = spare_port()
        assert port != 20_000
        with socket.socket() as probe:
            probe.bind((HOST, port))
