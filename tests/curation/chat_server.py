"""A chat API on this machine: writes what is asked for, and behaves as badly as a test wants."""

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Reply(NamedTuple):
    """What goes wrong: `content` is the text of the model, `body` the whole response in its place."""

    status: int = 200
    content: str | None = None
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0
    cut: bool = False
    finish_reason: str = "stop"
    usage: bool = True


def refusal(status, message="no", **fields):
    return Reply(status, body=json.dumps({"error": {"message": message, **fields}}).encode())


def good_model(body):
    """An answer of the structure that the prompt shows, about the text in it."""
    prompt = body["messages"][-1]["content"]
    found = re.search(r"<document>\n(.*?)\n</document>", prompt, re.DOTALL) or re.search(r"句子：(.*)", prompt)
    about = found[1] if found else prompt[-40:]
    (name,) = json.loads(prompt.split("\n\n你上一次")[0].strip().splitlines()[-1])
    count = int(re.search(r"(\d+) (?:条|个|种)", prompt)[1])
    topic = about[:6]
    if name == "queries":
        kinds = re.findall(r"^\d\. (.+?)；.*语言：(.+)$", prompt, re.MULTILINE)
        negatives = "hard_negatives" in prompt
        items = [
            {
                "query": f"What does number {k} say of {topic}?"
                if language == "英文"
                else f"{kind[:3]}：{topic}怎么样{k}？"
            }
            | (
                {"hard_negatives": [f"与{topic}相近的另一件事，说的是别的内容，编号{k}，不能回答问题。"]}
                if negatives
                else {}
            )
            for k, (kind, language) in enumerate(kinds)
        ]
    elif name == "pairs":
        scores = [float(one) for one in re.search(r"依次为 ([\d., ]+?)。", prompt)[1].split(", ")]
        items = [
            {"sentence": f"{about[: 2 + 2 * int(s)]}其余{'甲乙丙丁戊己'[int(s)]}不同{topic}", "score": s}
            for s in scores
        ]
    else:
        items = [f"换一种说法{k}：关于{topic}的事" for k in range(count)]
    return json.dumps({name: items}, ensure_ascii=False)


class ChatServer(ThreadingHTTPServer):
    """Answers `/v1/chat/completions` like `model`, unless `reply` returns something for a request.

    Attributes:
        bodies: of all requests, in order.
        times: when they came, s.
        keys: their `Authorization` headers.
        answered: how often each was answered to the end, by its JSON.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, model=good_model):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.bodies = []
        self.times = []
        self.keys = []
        self.answered = Counter()
        self.reply = lambda number, body: None
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def script(self, *replies):
        """Reply to the first requests so; what follows is answered well."""
        self.reply = lambda number, body: replies[number] if number < len(replies) else None

    def handle_error(self, request, client_address):
        """A client that went away is what some tests are about."""

    def shutdown_request(self, request: socket.socket):
        self.close_request(request)  # at once, so that a connection with a linger time of 0 is reset


@contextmanager
def chat_server(model=good_model):
    server = ChatServer(model)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer, sent in two pieces, waits 40 ms
    server: ChatServer

    def log_message(self, *_):
        """Nothing."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.bodies)
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.keys.append(self.headers["Authorization"])
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        reply = server.reply(number, body) or Reply()
        time.sleep(reply.delay)
        data = reply.body
        if data is None:
            content = server.model(body) if reply.content is None else reply.content
            answer = {"choices": [{"message": {"content": content}, "finish_reason": reply.finish_reason}]}
            if reply.usage:
                answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 10}
            data = json.dumps(answer).encode()
        with server.lock:
            server.at_once -= 1
        if reply.cut:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if reply.cut else data)
        if reply.status == 200 and not reply.cut:
            with server.lock:
                server.answered[json.dumps(body, sort_keys=True)] += 1
