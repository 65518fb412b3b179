"""Weights from a URL come whole, in time and of a bounded size, or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from prunerob.errors import UserError
from prunerob.runs import fetching
from prunerob.runs.fetching import download


@contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that takes a request and answers as it is told."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/some/weights.safetensors?a=b"


def sending(content: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(content)

    return answer


def test_a_whole_file_keeps_its_name() -> None:
    with server(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")) as url:
        file = download(url)
    assert file.name == "weights.safetensors"
    assert file.read_bytes() == b"hello"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be fetched"),
        (b"nonsense", "cannot be fetched"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "it ended after 5 of 9 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nhello", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3000, "it is larger than 0 MiB"),
    ],
)
def test_what_is_no_whole_answer_is_refused(
    content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MOST_BYTES", 1000)
    with server(sending(content)) as url, pytest.raises(UserError, match=message) as error:
        download(url)
    assert url in str(error.value)


@pytest.mark.parametrize("begins", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhe"])
def test_a_server_that_falls_silent_is_given_up(
    begins: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.2)
    end = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(begins)
        end.wait(20)

    with server(answer) as url, pytest.raises(UserError, match="no answer in time"):
        download(url)
    end.set()


def test_a_server_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "LONGEST", 0.3)
    end = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
        while not end.wait(0.05):
            connection.sendall(b"x")

    with server(answer) as url, pytest.raises(UserError, match="no answer in time"):
        download(url)
    end.set()
