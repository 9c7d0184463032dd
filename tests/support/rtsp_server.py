"""A small camera for tests: RTSP 1.0 (RFC 2326) on loopback, drawn pictures as RTP/JPEG (RFC 2435) inside the TCP connection.

    with RtspServer([(200, 30, 30)], user="admin", password="secret") as camera:
        cv2.VideoCapture(camera.address())

It can be killed and started again on its port, fall silent, hang up inside a packet, send damaged payloads, and ask for a password.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from itertools import count
from random import Random
from urllib.parse import quote

from PIL import Image

_REALM, _NONCE = "camera", "5f3c1e0a9b"
_FRAGMENT_BYTES = 1200
_CLOCK_HZ = 90_000
_PAYLOAD_JPEG = 26
_SESSION_S = 2  # clients must ask for something within this time; FFmpeg does so in half of it

Colour = tuple[int, int, int]


def drawn(colour: Colour, size_wh: tuple[int, int], number: int = 0) -> bytes:
    """A JPEG of a plain ground above and grey noise in the lower half, so that it takes many packets; RGB; sides are multiples of 16."""
    image = Image.new("RGB", size_wh, colour)
    half = (size_wh[0], size_wh[1] // 2)
    image.paste(Image.frombytes("L", half, Random(number).randbytes(half[0] * half[1])), (0, size_wh[1] - half[1]))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
    return buffer.getvalue()


def taken_apart(jpeg: bytes) -> tuple[bytes, bytes]:
    """The quantisation tables, 64 bytes each, and the scan of a baseline JPEG with the standard Huffman tables."""
    tables, at = b"", 2
    while True:
        marker, length = jpeg[at + 1], struct.unpack(">H", jpeg[at + 2 : at + 4])[0]
        body = jpeg[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == 0xDB:
            tables += b"".join(body[i + 1 : i + 65] for i in range(0, len(body), 65))
        elif marker == 0xDA:
            return tables, jpeg[at:-2]


def payloads(jpeg: bytes, size_wh: tuple[int, int]) -> Iterator[tuple[bytes, bool]]:
    """RTP payloads of one picture with their marker bits: type 1 (4:2:0), Q 255, tables in the first fragment."""
    tables, scan = taken_apart(jpeg)
    for offset in range(0, len(scan), _FRAGMENT_BYTES):
        head = struct.pack(">IBBBB", offset, 1, 255, size_wh[0] // 8, size_wh[1] // 8)
        if offset == 0:
            head += struct.pack(">BBH", 0, 0, len(tables)) + tables
        yield head + scan[offset : offset + _FRAGMENT_BYTES], offset + _FRAGMENT_BYTES >= len(scan)


class RtspServer:
    """Serves the same picture to everybody.

    Args:
        colours: the grounds of successive pictures, RGB, repeated.
        size_wh: of the pictures in pixels.
        fps: pictures a second.
        user, password: asked for unless empty.
        digest: asked for by Digest (RFC 2617, MD5) and not by Basic authentication.

    Attributes:
        port: on 127.0.0.1; the same after :meth:`kill` and :meth:`start`.
        silent: while set, connections are taken and stay open, but no picture and no answer is sent.
        damage: while not empty, how payloads are damaged: "scan" (every second picture is noise), "headers" (a wrong RTP/JPEG type) or
            "lost" (every second fragment is left out).  A client finds the first out when decoding; the other two never become pictures.
        requests: the methods asked for so far.
        refused: requests answered with 401 so far.
    """

    def __init__(
        self,
        colours: Sequence[Colour] = ((200, 40, 40),),
        size_wh: tuple[int, int] = (320, 240),
        fps: float = 50.0,
        user: str = "",
        password: str = "",
        *,
        digest: bool = False,
    ) -> None:
        self._jpegs = [drawn(colour, size_wh, number) for number, colour in enumerate(colours)]
        self._size_wh, self._period_s = size_wh, 1 / fps
        self._user, self._password, self._digest = user, password, digest
        self._lock = threading.Lock()
        self._clients: list[socket.socket] = []
        self._listening: socket.socket | None = None
        self.port = 0
        self.silent, self.damage = threading.Event(), ""
        self.requests: list[str] = []
        self.refused = 0

    def __enter__(self) -> RtspServer:  # noqa: PYI034  Self is younger than Python 3.10
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def address(self, user: str | None = None, password: str | None = None) -> str:
        """Of the stream, with the right credentials where none are given."""
        name, word = self._user if user is None else user, self._password if password is None else password
        before = quote(name, safe="") + ":" + quote(word, safe="") + "@" if name else ""
        return f"rtsp://{before}127.0.0.1:{self.port}/live"

    def start(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def kill(self) -> None:
        """Close the port and every connection at once."""
        if self._listening is not None:
            self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
            self._listening = None
        self.hang_up(b"")

    def hang_up(self, half: bytes = b"$\x00\x04\x00half a packet") -> None:
        """End every connection, after the beginning of a packet of 1024 bytes; the port stays open."""
        with self._lock:
            clients, self._clients = self._clients, []
            for client in clients:
                try:
                    client.sendall(half)
                    client.shutdown(socket.SHUT_RDWR)
                except OSError:  # the other side was faster
                    continue

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with self._lock:
                self._clients.append(client)
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        """Answer requests until the client leaves; what it sends of RTCP in between is passed over."""
        left = threading.Event()
        try:
            with client, client.makefile("rb") as lines:
                while first := lines.read(1):
                    if first == b"$":
                        lines.read(struct.unpack(">xH", lines.read(3))[0])
                        continue
                    method, target, _ = (first + lines.readline()).decode().split()
                    headers = dict(line.split(": ", 1) for line in iter(lambda: lines.readline().decode().strip(), ""))
                    self.requests.append(method)
                    if self.silent.is_set():
                        continue
                    with self._lock:
                        client.sendall(self._answer(method, target, headers))
                    if method == "PLAY" and self._admits(method, headers):
                        threading.Thread(target=self._play, args=(client, left), daemon=True).start()
                    if method == "TEARDOWN":
                        return
        except (OSError, ValueError, struct.error):  # killed, or the client went away inside a request
            return
        finally:
            left.set()

    def _answer(self, method: str, target: str, headers: dict[str, str]) -> bytes:
        status, extra, body = "200 OK", [f"Session: 12345678;timeout={_SESSION_S}"], ""
        if method != "OPTIONS" and not self._admits(method, headers):
            self.refused += 1
            how = f'Digest realm="{_REALM}", nonce="{_NONCE}"' if self._digest else f'Basic realm="{_REALM}"'
            status, extra = "401 Unauthorized", [f"WWW-Authenticate: {how}"]
        elif method == "OPTIONS":
            extra = ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"]
        elif method == "DESCRIBE":
            body = (
                "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\n"
                f"m=video 0 RTP/AVP {_PAYLOAD_JPEG}\r\nc=IN IP4 0.0.0.0\r\na=control:track1\r\n"
                "m=audio 0 RTP/AVP 0\r\nc=IN IP4 0.0.0.0\r\na=control:track2\r\n"
            )
            extra = ["Content-Type: application/sdp", f"Content-Base: {target}/"]
        elif method == "SETUP" and "interleaved" in headers.get("Transport", ""):
            extra.append("Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
        elif method == "SETUP":
            status = "461 Unsupported Transport"
        elif method not in ("PLAY", "TEARDOWN", "GET_PARAMETER"):
            status = "501 Not Implemented"
        head = [f"RTSP/1.0 {status}", f"CSeq: {headers['CSeq']}", *extra, f"Content-Length: {len(body)}", "", body]
        return "\r\n".join(head).encode()

    def _admits(self, method: str, headers: dict[str, str]) -> bool:
        if not self._user:
            return True
        kind, _, said = headers.get("Authorization", "").partition(" ")
        if not self._digest:
            return kind == "Basic" and base64.b64decode(said).decode() == f"{self._user}:{self._password}"
        fields = dict(re.findall(r'(\w+)="([^"]*)"', said))
        secret = _md5(f"{self._user}:{_REALM}:{self._password}")
        right = _md5(f"{secret}:{_NONCE}:" + _md5(f"{method}:{fields.get('uri', '')}"))
        return kind == "Digest" and fields.get("username") == self._user and fields.get("response") == right

    def _play(self, client: socket.socket, left: threading.Event) -> None:
        """Send pictures until the client leaves."""
        sequence = count()
        for number in count():
            if left.wait(self._period_s):
                return
            if self.silent.is_set():
                continue
            try:
                with self._lock:
                    client.sendall(b"".join(self._packets(number, sequence)))
            except OSError:
                return

    def _packets(self, number: int, sequence: Iterator[int]) -> Iterator[bytes]:
        """Interleaved RTP packets of one picture."""
        stamp = round(number * self._period_s * _CLOCK_HZ) & 0xFFFFFFFF
        for index, (payload, last) in enumerate(payloads(self._jpegs[number % len(self._jpegs)], self._size_wh)):
            at = next(sequence) & 0xFFFF
            if self.damage == "lost" and index % 2:
                continue
            packet = struct.pack(">BBHII", 0x80, _PAYLOAD_JPEG | last << 7, at, stamp, 7) + self._damaged(payload, number)
            yield struct.pack(">cBH", b"$", 0, len(packet)) + packet

    def _damaged(self, payload: bytes, number: int) -> bytes:
        if self.damage == "headers":
            return payload[:4] + b"\x3f" + payload[5:]
        if self.damage == "scan" and number % 2:
            head = 8 + 4 + 128 if payload[1:4] == bytes(3) else 8
            return payload[:head] + hashlib.shake_128(payload + bytes([number & 0xFF])).digest(len(payload) - head)
        return payload


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
