"""An example production app: it asks a language model which queue a customer's message belongs in.

POST a message to /messages; the answer is {"queue": ..., "event": ...}. It uses the plain `openai`
client and nothing of flywheel; one line had to change.
"""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from openai import OpenAI, OpenAIError

PROMPT = Path(__file__).with_name("prompt.txt").read_text()
MODEL = os.environ.get("MODEL", "support-desk")

# The one changed line. Without flywheel it was: client = OpenAI()
client = OpenAI(base_url=os.environ.get("MODEL_URL", "http://127.0.0.1:8700/v1"))


def queue_of(message: str, user: str) -> dict[str, str]:
    """Which queue; a message that nobody can sort just now goes to people, not to an error page."""
    try:
        reply = client.chat.completions.create(
            model=MODEL,
            user=user,
            messages=[
                {"role": "system", "content": PROMPT},
                {"role": "user", "content": message},
            ],
        )
    except OpenAIError as error:
        print(f"not sorted: {error!r}", flush=True)
        return {"queue": "by_hand", "event": ""}
    return {"queue": (reply.choices[0].message.content or "").strip(), "event": reply.id}


class Desk(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(queue_of(body.decode(errors="replace"), self.headers.get("x-user", "")))

    def do_GET(self) -> None:
        self.answer({"status": "alive"})  # whatever becomes of the gateway

    def answer(self, content: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None: ...


if __name__ == "__main__":
    server = ThreadingHTTPServer(
        (os.environ.get("HOST", ""), int(os.environ.get("PORT", 8080))), Desk
    )
    print(f"The desk listens on port {server.server_port}", flush=True)
    server.serve_forever()
